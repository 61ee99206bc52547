"""Bytes from every device to every other one: the one thing that exchanges are made of, over a process group of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from einfuse.distributed.errors import ExchangeError

Arrival = Callable[[], dict[int, torch.Tensor]]
"""Waits for what was sent, and returns the bytes of every device."""


class Transport(Protocol):
    """One device among ``size`` of a mesh axis, its own number being ``rank``."""

    rank: int
    size: int

    def post(self, name: str, sends: Mapping[int, torch.Tensor], receives: Mapping[int, int]) -> Arrival:
        """Begins to send bytes to others and to get so many from each; what it returns waits for them. All devices of the axis call it,
        with numbers that fit, and wait in the order in which they began.

        Who sends nothing to whom need not be mentioned. ``name`` is for messages.
        """


class Group:
    """A process group of torch: sends and receives from one to another, each within ``timeout`` seconds."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, timeout: float) -> None:
        self.group, self.device = group, device
        self.timeout = timedelta(seconds=timeout)
        self.rank, self.size = group.rank(), group.size()
        self.ranks = dist.get_process_group_ranks(group)
        self.step = 0
        self.sent = 0
        """Bytes that this device has sent so far."""

    def post(self, name: str, sends: Mapping[int, torch.Tensor], receives: Mapping[int, int]) -> Arrival:
        self.step += 1
        out = {s: torch.empty(n, dtype=torch.uint8, device=self.device) for s, n in receives.items() if n}
        moves = [(s, dist.P2POp(dist.irecv, x, self.ranks[s], self.group)) for s, x in out.items()]
        moves += [(d, dist.P2POp(dist.isend, x, self.ranks[d], self.group)) for d, x in sends.items() if x.numel()]
        works: list[tuple[int, dist.Work]] = []
        said = _Said(name, self.size, self.step)
        with said:
            if self.device.type == "cuda" and moves:  # one launch for all of them
                works = [(-1, w) for w in dist.batch_isend_irecv([op for _, op in moves])]
            else:
                for said.peer, op in moves:
                    works.append((said.peer, self._begun(op, said.peer)))
        self.sent += sum(x.numel() for x in sends.values())

        def arrived() -> dict[int, torch.Tensor]:
            with said:
                for said.peer, work in works:
                    if not work.wait(self.timeout):
                        raise RuntimeError("it was not completed")
            moves.clear()  # what is sent has to live until then
            return {s: out.get(s, torch.empty(0, dtype=torch.uint8, device=self.device)) for s in receives}

        return arrived

    def _begun(self, op: dist.P2POp, peer: int) -> dist.Work:
        if op.op is dist.isend:
            work = dist.isend(op.tensor, group=self.group, group_dst=peer)
        else:
            work = dist.irecv(op.tensor, group=self.group, group_src=peer)
        assert work is not None, "this process is one of the group"
        return work


class _Said:
    """A block whose errors say which exchange did not take place, with whom and at which step."""

    def __init__(self, name: str, size: int, step: int) -> None:
        self.name, self.size, self.step, self.peer = name, size, step, -1

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            who = f"device {self.peer} of {self.size}" if self.peer >= 0 else "another device"
            raise ExchangeError(f"{self.name} with {who} did not take place (step {self.step}): {_first(error)}") from error


def _first(error: RuntimeError) -> str:
    """The first line of a message, without where in torch it was raised."""
    return str(error).splitlines()[0].partition("] ")[2] or str(error).splitlines()[0]
