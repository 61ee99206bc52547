"""The HTTP side of examples/serve, as a server calls it: OpenAI's form, streams, clients that go away, what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("starlette")

from serve.api import Steps, application

Plain = Callable[[Sequence[int], int], list[int]]


@pytest.fixture
def steps(engine: Callable[..., Any]) -> Iterator[Steps]:
    made = Steps(engine())
    made.start()
    yield made
    made.do(None)
    made.join(30)
    assert not made.is_alive()
    left = made.engine
    assert not left.running
    assert not left.waiting
    assert left.pages.free + left.prefixes.idle == left.model.capacity.pages


async def messages(app: Any, body: Any, leave: int | None = None, method: str = "POST", path: str = "") -> AsyncIterator[Any]:
    """What the application sends; the client goes away after ``leave`` messages."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
    }
    scope |= {"path": path or "/v1/completions", "raw_path": b"", "query_string": b"", "headers": []}
    task = asyncio.ensure_future(app(scope, inbox.get, outbox.put))
    task.add_done_callback(lambda _: outbox.put_nowait(None))
    count = 0
    while True:
        if count == leave:
            inbox.put_nowait({"type": "http.disconnect"})
        message = await outbox.get()
        if message is None:
            break
        count += 1
        yield message
    await task


async def answer(app: Any, body: Any, **options: Any) -> tuple[int, Any]:
    got = [m async for m in messages(app, body, **options)]
    return got[0]["status"], json.loads(b"".join(m.get("body", b"") for m in got) or "null")


def events(got: list[Any]) -> list[Any]:
    text = b"".join(m.get("body", b"") for m in got).decode()
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def text(tokens: list[int]) -> str:
    return bytes(t for t in tokens if t != 256).decode(errors="replace")


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(256) + 1] if 256 in tokens else tokens


def test_a_completion_has_the_tokens_of_plain_generation(steps: Steps, plain: Plain) -> None:
    prompts = ["once upon", "a time"]
    body = {"prompt": prompts, "max_tokens": 8, "temperature": 0, "n": 2, "top_p": 1}
    status, got = asyncio.run(answer(application(steps), body))
    assert status == 200
    assert got["object"] == "text_completion"
    wanted = [until_end(plain(list(p.encode()), 8)) for p in prompts for _ in range(2)]
    assert [c["text"] for c in got["choices"]] == [text(w) for w in wanted]
    assert [c["index"] for c in got["choices"]] == [0, 1, 2, 3]
    assert {c["finish_reason"] for c in got["choices"]} <= {"length", "stop"}
    made = sum(map(len, wanted))
    assert got["usage"] == {"prompt_tokens": 15, "completion_tokens": made, "total_tokens": 15 + made}
    assert steps.engine.computed < 4 * 9 + made  # the second of each two shares the prompt


def test_tokens_come_as_they_are_made(steps: Steps, plain: Plain) -> None:
    prompt = list(b"once upon")

    async def streamed() -> list[Any]:
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True}
        return [m async for m in messages(application(steps), body)]

    got = asyncio.run(streamed())
    assert (b"content-type", b"text/event-stream; charset=utf-8") in got[0]["headers"]
    *parts, last = events(got)
    assert last == "[DONE]"
    choices = [json.loads(p)["choices"][0] for p in parts]
    wanted = until_end(plain(prompt, 8))
    assert len(choices) == len(wanted)  # a token each
    assert "".join(c["text"] for c in choices) == text(wanted)
    assert [c["finish_reason"] is None for c in choices] == [True] * (len(wanted) - 1) + [False]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_request_and_no_other(stream: bool, steps: Steps, plain: Plain) -> None:
    ended: list[str | None] = []
    real = steps.engine.cancel
    steps.engine.cancel = lambda request: (real(request), ended.append(request.finish))  # type: ignore[assignment, func-returns-value]

    async def both() -> tuple[int, Any]:
        app = application(steps)
        gone = messages(app, {"prompt": "never", "max_tokens": 50, "seed": 1, "stream": stream}, leave=2 if stream else 0)
        left = asyncio.ensure_future(_all(gone))
        stays = await answer(app, {"prompt": "once upon", "max_tokens": 8, "temperature": 0})
        await left
        return stays

    status, got = asyncio.run(both())
    assert status == 200
    assert got["choices"][0]["text"] == text(until_end(plain(list(b"once upon"), 8)))
    steps.do(None)
    steps.join(30)
    assert ended == ["cancelled"]


async def _all(got: AsyncIterator[Any]) -> list[Any]:
    return [m async for m in got]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"prompt": "a", "logprobs": 3}, "logprobs is not supported here, found 3"),
        ({"prompt": "a", "top_p": 0.5}, "top_p is not supported here, found 0.5"),
        ({"prompt": ["a", 3]}, "prompt is a text, tokens from 0 to 256, or a list of these"),
        ({"prompt": [257]}, "prompt is a text, tokens from 0 to 256"),
        ({"max_tokens": 3}, "prompt is a text"),
        ({"prompt": "a", "n": 1.5}, "n is a number from 0 on, found 1.5"),
        ({"prompt": "a", "max_tokens": 500}, "there is room for 64 tokens, found 1 and up to 500 more"),
        ([], "the body is an object of JSON"),
    ],
)
def test_what_the_server_has_not_is_refused(body: Any, reason: str, steps: Steps) -> None:
    status, got = asyncio.run(answer(application(steps), body))
    assert status == 400
    assert reason in got["error"]["message"]


def test_the_model_has_a_name(steps: Steps) -> None:
    status, got = asyncio.run(answer(application(steps), None, method="GET", path="/v1/models"))
    assert status == 200
    assert [m["id"] for m in got["data"]] == ["llama-random"]
