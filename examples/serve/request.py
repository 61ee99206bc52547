"""`Request`: a prompt, what was generated, and where its keys are; `pick` and `lookup` choose its next tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

Draft = Callable[[Sequence[int]], Sequence[int]]
"""Guesses the tokens that follow. A wrong guess costs its rows and changes no token."""


def unheard(request: Request) -> None:
    """Listens to nothing."""


@dataclass(eq=False)
class Request:
    """What a client asked for. The engine writes all fields from ``tokens`` on, and calls ``listen`` after each step that changed them."""

    prompt: Sequence[int]
    limit: int = 16
    """How many tokens to generate at most."""
    stop: frozenset[int] = frozenset()
    """Tokens after which there are no more."""
    temperature: float = 0.0
    seed: int = 0
    after: Request | None = None
    """A request whose pages it shares while their tokens agree: a fork."""
    listen: Callable[[Request], None] = unheard

    tokens: list[int] = field(init=False)
    computed: int = field(default=0, init=False)
    """How many tokens have their keys in the pages."""
    pages: list[int] = field(default_factory=list, init=False)
    slot: int | None = field(default=None, init=False)
    """The line of the page table that is its own, while it runs."""
    finish: str | None = field(default=None, init=False)
    """Why there are no more tokens: stop, length, cancelled, or error."""

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def left(self) -> int:
        """How many more tokens it may have."""
        return len(self.prompt) + self.limit - len(self.tokens)

    @property
    def pending(self) -> int:
        """How many tokens have no keys yet: one while it decodes, more before."""
        return len(self.tokens) - self.computed

    def add(self, token: int) -> None:
        """A token more."""
        self.tokens.append(token)
        if token in self.stop:
            self.finish = "stop"
        elif not self.left:
            self.finish = "length"


def pick(request: Request, logits: torch.Tensor) -> int:
    """The next token by the logits of the last one.

    Noise depends on the seed and the place alone, so what else runs, drafts, and starting again change no token.
    """
    if request.temperature > 0:
        noise = torch.Generator().manual_seed(hash((request.seed, len(request.tokens))))
        gumbel = -torch.empty_like(logits).exponential_(generator=noise).log()
        logits = logits / request.temperature + gumbel
    return int(logits.argmax())


def lookup(tokens: Sequence[int], most: int = 4, same: int = 2) -> Sequence[int]:
    """What followed the last place where the last tokens stood before (prompt lookup decoding)."""
    last = list(tokens[-same:])
    for at in range(len(tokens) - same - 1, -1, -1):
        if list(tokens[at : at + same]) == last:
            return tokens[at + same : at + same + most]
    return ()
