"""`Engine`: which rows of which requests a step computes, and whose pages they are in.

    waiting -> [admitted: shares the pages of a known prefix] -> runs: chunks of its prompt, then a token and its drafts a step -> ends
        ^                                                        |
        +------------- evicted: gives its pages back ------------+

The oldest request always goes on: where pages run out, prefixes that nobody uses are forgotten first, then the youngest request waits again
and is computed again later, so all of them end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from serve.model import Model
from serve.pages import Pages
from serve.prefixes import Prefixes
from serve.request import Draft, Request, pick, unheard


def none(tokens: Sequence[int]) -> Sequence[int]:
    """No drafts."""
    return ()


@dataclass(slots=True)
class Work:
    """The rows of a request in a step: the next ``fed`` of its own tokens, then drafts."""

    request: Request
    fed: int
    drafts: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        begin = self.request.computed
        return [*self.request.tokens[begin : begin + self.fed], *self.drafts]

    @property
    def decided(self) -> int:
        """How many rows have a next token: none in the middle of a prompt."""
        return 0 if self.fed < self.request.pending else 1 + len(self.drafts)


@dataclass(eq=False)
class Engine:
    """Continuous batching over the pages of a model. Not for several threads at once."""

    model: Model
    draft: Draft = none
    waiting: deque[Request] = field(default_factory=deque, init=False)
    running: list[Request] = field(default_factory=list, init=False)
    """The oldest first."""
    computed: int = field(default=0, init=False)
    """How many rows were computed: less than tokens where prefixes are shared, more where requests were evicted or drafts were wrong."""
    evicted: int = field(default=0, init=False)
    """How often a request had to give its pages back."""

    def __post_init__(self) -> None:
        c = self.model.capacity
        if c.rows < c.batch:
            raise ValueError(f"a step has a row for each of {c.batch} sequences at least, found {c.rows}")
        self.pages = Pages(c.pages)
        self.prefixes = Prefixes(self.pages, c.width)
        self._slots = list(reversed(range(c.batch)))

    def submit(self, request: Request) -> Request:
        """Puts a request behind those that wait. Raises ValueError for one that no empty engine could serve."""
        self.check(request)
        self.waiting.append(request)
        return request

    def check(self, request: Request) -> None:
        """Raises ValueError for a request that `submit` refuses."""
        total, room = len(request.prompt) + request.limit, self.model.capacity.room
        if not request.prompt or request.limit < 1:
            raise ValueError(
                f"a request has a token and asks for one at least, found {len(request.prompt)} and {request.limit}"
            )
        if total > room:
            raise ValueError(f"there is room for {room} tokens, found {len(request.prompt)} and up to {request.limit} more")

    def cancel(self, request: Request) -> None:
        """Ends a request now, and gives its pages back."""
        self._end(request, "cancelled")

    def step(self) -> bool:
        """Computes some rows of the requests that are there. Whether there was anything to do.

        What fails for one request (its listener, its drafts) ends that request. An error of the model is raised, after the requests that
        it was computing ended.
        """
        self._admit()
        work = self._work()
        if not work:
            return bool(self.running or self.waiting)
        try:
            logits = self._logits(work)
        except Exception:
            for w in work:
                self._end(w.request, "error")
            raise
        for w, rows in zip(work, logits.split([w.decided for w in work]), strict=True):
            if w.request.slot is not None:  # no listener of another cancelled it
                self._take(w, rows)
        return True

    def run(self) -> None:
        """Steps until all requests have ended."""
        while self.step():
            pass

    def _admit(self) -> None:
        """Lets those that wait longest in, while there is a line in the table and room for their tokens."""
        while self.waiting and self._slots:
            request = self.waiting[0]
            if request.after is not None and request.after.slot is not None and request.after.pending > 1:
                break  # soon there is more to share
            request.pages, request.computed = self._shared(request)
            more = self._count(len(request.tokens)) - len(request.pages) + 1  # one: a shared page that it writes to
            if self.running and more > self.pages.free + self.prefixes.idle:
                self._let_go(request)
                break
            self.waiting.popleft()
            request.slot = self._slots.pop()
            self.running.append(request)

    def _shared(self, request: Request) -> tuple[list[int], int]:
        """The pages of tokens that are computed already, held now, and how many tokens these are: never the last, whose logits are wanted."""
        pages = self.prefixes.find(request.tokens[:-1])
        computed, parent = len(pages) * self.prefixes.width, request.after
        if parent is not None and parent.slot is not None:
            pairs = zip(request.tokens[:-1], parent.tokens[: parent.computed], strict=False)
            agree = next((n for n, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
            agree = min(len(request.tokens) - 1, parent.computed) if agree is None else agree
            if agree > computed:
                self.pages.release(pages)
                pages, computed = parent.pages[: self._count(agree)], agree
                self.pages.hold(pages)
        return pages, computed

    def _work(self) -> list[Work]:
        """The rows of a step: one of each request that decodes, prompts and drafts in those that are left, the oldest first."""
        left = self.model.capacity.rows - sum(r.pending == 1 for r in self.running)
        work: list[Work] = []
        for request in list(self.running):
            if request.slot is None:
                continue  # evicted
            drafts: Sequence[int] = ()
            fed = 1
            if request.pending > 1:
                fed = min(request.pending, left)
                left -= fed
            else:
                drafts = self._drafts(request, min(left, request.left - 1))
                left -= len(drafts)
            if fed and request.finish is None and self._writable(request, request.computed + fed + len(drafts)):
                work.append(Work(request, fed, drafts))
        return work

    def _drafts(self, request: Request, most: int) -> Sequence[int]:
        try:
            return tuple(self.draft(request.tokens)[:most]) if most else ()
        except Exception:  # a client's function
            self._end(request, "error")
            return ()

    def _writable(self, request: Request, end: int) -> bool:
        """Makes the tokens up to ``end`` pages of the request's own. Whether the request still runs."""
        for n in range(request.computed // self.model.capacity.width, self._count(end)):
            old = request.pages[n : n + 1]
            if old and self.pages.holders[old[0]] == 1:
                continue
            while not self.pages.free and not self.prefixes.forget():
                self._evict(self.running[-1])
                if request.slot is None:
                    return False
            page = self.pages.take()
            if old:
                self.model.copy(old[0], page)
            request.pages[n : n + 1] = [page]
            self.pages.release(old)
        return True

    def _logits(self, work: list[Work]) -> torch.Tensor:
        """The logits of the rows that have a next token, in the order of the work."""
        cache = self.model.cache
        for w in work:
            slot = w.request.slot
            cache.page[slot, : len(w.request.pages)] = torch.tensor(w.request.pages, dtype=cache.page.dtype)
            cache.length[slot] = w.request.computed + len(w.tokens)
        rows = {w.request.slot: w for w in work}
        tokens: list[int] = []
        positions: list[int] = []
        starts = [0]
        ends: dict[int | None, int] = {}
        for slot in range(self.model.capacity.batch):
            if slot in rows:
                w = rows[slot]
                tokens += w.tokens
                positions += range(w.request.computed, w.request.computed + len(w.tokens))
                ends[slot] = len(tokens)
            starts.append(len(tokens))
        self.computed += len(tokens)
        wanted = [row for w in work for row in range(ends[w.request.slot] - w.decided, ends[w.request.slot])]
        return self.model(tokens, positions, starts, wanted)

    def _take(self, work: Work, logits: torch.Tensor) -> None:
        """The tokens that the logits give: one, and one more for each draft that was right."""
        request = work.request
        request.computed += work.fed
        for n, row in enumerate(logits):
            token = pick(request, row)
            request.add(token)
            if request.finish or n == len(work.drafts) or work.drafts[n] != token:
                break
            request.computed += 1
        self.prefixes.add(request.tokens[: request.computed], request.pages)
        if request.finish:
            self._end(request, request.finish)
        elif work.decided:
            self._tell(request)

    def _tell(self, request: Request) -> None:
        try:
            request.listen(request)
        except Exception:  # a client's function
            if not request.finish:
                request.listen = unheard
                self._end(request, "error")

    def _end(self, request: Request, reason: str) -> None:
        if request.slot is not None:
            self._stop(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return
        request.finish, request.after = reason, None
        self._tell(request)

    def _evict(self, request: Request) -> None:
        """Takes the pages of a request that runs, which will be the next to be admitted."""
        self._stop(request)
        self.evicted += 1
        self.waiting.appendleft(request)

    def _stop(self, request: Request) -> None:
        assert request.slot is not None, "it runs"
        self.running.remove(request)
        self.model.cache.length[request.slot] = 0
        self._slots.append(request.slot)
        request.slot = None
        self._let_go(request)

    def _let_go(self, request: Request) -> None:
        self.pages.release(request.pages)
        request.pages, request.computed = [], 0

    def _count(self, tokens: int) -> int:
        """How many pages hold so many tokens."""
        return -(-tokens // self.model.capacity.width)
