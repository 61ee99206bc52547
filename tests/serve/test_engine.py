"""The engine of examples/serve: the tokens of plain generation whatever arrives, leaves, forks or is guessed, and no page is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from serve.pages import Pages
from serve.prefixes import Prefixes
from serve.request import Request, lookup

Made = Callable[..., Any]
Plain = Callable[[Sequence[int], int], list[int]]


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(257) for _ in range(n)] for n in lengths]


def emptied(engine: Any) -> None:
    """No request holds a page, and none is lost: the tree is the only holder of what is not free."""
    assert not engine.running
    assert not engine.waiting
    assert sorted(engine._slots) == list(range(engine.model.capacity.batch))
    assert engine.pages.free + engine.prefixes.idle == engine.model.capacity.pages
    while engine.prefixes.forget():
        pass
    assert engine.pages.holders == [0] * engine.model.capacity.pages


def wrong(tokens: Sequence[int]) -> Sequence[int]:
    return [(t + 1) % 257 for t in tokens[-3:]]


@pytest.mark.parametrize("draft", [None, lookup, wrong], ids=["none", "lookup", "wrong"])
def test_tokens_are_those_of_plain_generation_under_random_arrival_and_eviction(draft: Any, plain: Plain, engine: Made) -> None:
    options = {} if draft is None else {"draft": draft}
    made = engine(pages=11, **options)  # three requests of up to 8 pages each do not fit
    draw = random.Random(1)
    wanted = [Request(p, draw.randrange(6, 15)) for p in prompts(5, 17, 9, 1, 20, 12)]
    left = list(wanted)
    while left or made.running or made.waiting:
        if left and draw.random() < 0.3:
            made.submit(left.pop())
        made.step()
    assert made.evicted
    assert [r.generated for r in wanted] == [plain(r.prompt, r.limit) for r in wanted]
    assert {r.finish for r in wanted} == {"length"}
    emptied(made)


def test_right_drafts_save_steps_and_wrong_ones_cost_rows_alone(plain: Plain, engine: Made) -> None:
    (prompt,) = prompts(6)
    answer = plain(prompt, 12)

    def right(tokens: Sequence[int]) -> Sequence[int]:
        done = len(tokens) - len(prompt)
        return answer[done : done + 3]

    steps: dict[str, int] = {}
    for name, draft in (("right", right), ("wrong", wrong)):
        made = engine(draft=draft)
        request = made.submit(Request(prompt, 12))
        while made.step():
            steps[name] = steps.get(name, 0) + 1
        assert request.generated == answer
        emptied(made)
    assert steps == {"right": 4, "wrong": 12}  # 1 + 4 + 4 + 3 tokens


def test_a_known_prefix_is_not_computed_again(plain: Plain, engine: Made) -> None:
    made, (first, tail, other) = engine(), prompts(14, 3, 5)
    made.submit(Request(first, 4))
    made.run()
    assert made.computed == 14 + 3
    again = made.submit(Request(first[:12] + tail, 5))
    same = made.submit(Request(first, 5))  # its last token is computed for the logits
    made.submit(Request(other, 2))
    made.run()
    assert made.computed == 17 + (3 + 4) + (2 + 4) + (5 + 1)
    assert again.generated == plain(again.prompt, 5)
    assert same.generated == plain(first, 5)
    emptied(made)


@pytest.mark.parametrize("prefixes", [False, True])
def test_forks_share_a_page_until_one_of_them_writes_to_it(prefixes: bool, plain: Plain, engine: Made) -> None:
    made, (prompt,) = engine(prefixes=prefixes), prompts(10)
    copied: list[int] = []
    real = made.model.copy

    def copy(page: int, to: int) -> None:
        copied.append(page)
        real(page, to)

    made.model.copy = copy
    parent = made.submit(Request(prompt, 8))
    twin = made.submit(Request(prompt, 8, after=parent))
    while len(parent.generated) < 3:
        made.step()
    partial = parent.pages[:]
    child = made.submit(Request([*parent.tokens[:11], 7, 8], 6, after=parent))
    made.step()
    assert child.pages[:2] == partial[:2]
    assert copied  # the third page, with tokens of both
    assert child.pages[2] != parent.pages[2]
    made.run()
    for request in (parent, twin, child):
        assert request.generated == plain(request.prompt, request.limit)
    assert made.computed == (10 + 7) + (1 + 7) + (
        2 + 5
    )  # the twin computes the last token of its prompt, the child what differs
    emptied(made)


@pytest.mark.parametrize("when", [0, 1, 2, 4, 7])
def test_a_request_that_is_killed_takes_no_other_with_it(when: int, plain: Plain, engine: Made) -> None:
    made = engine(pages=12)
    wanted = [made.submit(Request(p, 8)) for p in prompts(7, 17, 9, 4)]
    for _ in range(when):
        made.step()
    made.cancel(wanted[1])
    made.cancel(wanted[1])  # has ended already: nothing to do
    made.run()
    assert wanted[1].finish == "cancelled"
    for n in (0, 2, 3):
        assert wanted[n].generated == plain(wanted[n].prompt, 8)
    emptied(made)


def test_what_fails_for_one_request_ends_that_request(plain: Plain, engine: Made) -> None:
    def heard(request: Request) -> None:
        raise RuntimeError("the listener is gone")

    def draft(tokens: Sequence[int]) -> Sequence[int]:
        if tokens[0] == first[0]:
            raise RuntimeError("no guess")
        return ()

    first, second, third = prompts(5, 6, 7)
    made = engine(draft=draft)
    failed = [made.submit(Request(first, 8)), made.submit(Request(second, 8, listen=heard))]
    other = made.submit(Request(third, 8))
    made.run()
    assert [r.finish for r in failed] == ["error", "error"]
    assert other.generated == plain(third, 8)
    emptied(made)


def test_a_step_that_fails_ends_its_requests_and_gives_their_pages_back(
    plain: Plain, engine: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, (first, second) = engine(batch=1), prompts(5, 6)
    lost, other = made.submit(Request(first, 4)), made.submit(Request(second, 4))
    with monkeypatch.context() as patch:
        patch.setattr(made.model.net, "forward", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made.step()
    made.run()
    assert (lost.finish, other.finish) == ("error", "length")
    assert other.generated == plain(second, 4)
    emptied(made)


def test_drawn_tokens_do_not_depend_on_what_else_runs(engine: Made) -> None:
    first, *others = prompts(6, 9, 5)
    drawn = []
    for pages, draft in ((24, lookup), (8, wrong)):
        made = engine(pages=pages, draft=draft)
        request = Request(first, 10, temperature=2.0, seed=3)
        for each in (*others, None):
            made.submit(request if each is None else Request(each, 10))
        made.run()
        drawn.append(request.generated)
        emptied(made)
    assert drawn[0] == drawn[1]
    second = made.submit(Request(first, 10, temperature=2.0, seed=4))
    made.run()
    assert second.generated != drawn[0]


def test_layers_with_a_window_have_a_plan_of_their_own(engine: Made) -> None:
    import transformers
    from serve.engine import Engine
    from serve.model import Capacity, Model

    torch.manual_seed(0)
    sizes: Any = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 257,
        "initializer_range": 0.5,
    }
    config = transformers.MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=6)
    model: Any = transformers.MistralForCausalLM(config)
    model.eval()
    (prompt,) = prompts(15)
    model.set_attn_implementation("eager")
    ids = torch.tensor([prompt])
    truth = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, eos_token_id=None)
    made = Engine(Model(model, Capacity(12, width=4, table=8, batch=2, rows=9)))
    request = made.submit(Request(prompt, 8))
    made.run()
    assert request.tokens == truth[0].tolist()


def test_requests_that_cannot_be_served_are_refused(engine: Made) -> None:
    made = engine(pages=4)
    with pytest.raises(ValueError, match="room for 16 tokens, found 10 and up to 7 more"):
        made.submit(Request(list(range(10)), 7))
    with pytest.raises(ValueError, match="asks for one at least, found 0 and 16"):
        made.submit(Request([]))
    with pytest.raises(ValueError, match="a row for each of 3 sequences at least, found 2"):
        engine(rows=2)


def test_the_tree_forgets_what_was_not_used_for_longest_and_nothing_that_is_used() -> None:
    pages = Pages(6)
    tree = Prefixes(pages, 2)
    held = [pages.take() for _ in range(4)]
    tree.add([1, 2, 3, 4, 5], held[:2])  # the 5 is in no full page
    tree.add([1, 2, 8, 9], [held[2], held[3]])  # the first is known: the page of the first request stays
    pages.release(held)
    assert pages.free == 3
    assert tree.find([1, 2, 3, 4, 5, 6]) == held[:2]
    assert tree.idle == 1
    assert tree.forget()  # [8, 9]
    assert not tree.forget()  # the rest is used
    pages.release(held[:2])
    assert tree.forget()
    assert tree.find([1, 2, 3, 4]) == held[:1]
    pages.release(held[:1])
    assert tree.forget()
    assert pages.free == 6
