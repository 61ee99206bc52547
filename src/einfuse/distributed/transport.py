"""Bytes from every device to every other one: the one thing that exchanges are made of, over a process group of torch."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from einfuse.distributed.errors import ExchangeError


class Transport(Protocol):
    """One device among ``size`` of a mesh axis, its own number being ``rank``."""

    rank: int
    size: int

    def exchange(self, name: str, sends: Mapping[int, torch.Tensor], receives: Mapping[int, int]) -> dict[int, torch.Tensor]:
        """Sends bytes to others, and gets so many from each. All devices of the axis call it, with numbers that fit.

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

    def exchange(self, name: str, sends: Mapping[int, torch.Tensor], receives: Mapping[int, int]) -> dict[int, torch.Tensor]:
        self.step += 1
        out = {s: torch.empty(n, dtype=torch.uint8, device=self.device) for s, n in receives.items() if n}
        moves = [(s, dist.P2POp(dist.irecv, x, self.ranks[s], self.group)) for s, x in out.items()]
        moves += [(d, dist.P2POp(dist.isend, x, self.ranks[d], self.group)) for d, x in sends.items() if x.numel()]
        works: list[tuple[int, dist.Work]] = []
        peer = -1
        try:
            if self.device.type == "cuda" and moves:  # one launch for all of them
                works = [(-1, w) for w in dist.batch_isend_irecv([op for _, op in moves])]
            else:
                for peer, op in moves:
                    work = (
                        op.op(op.tensor, group=self.group, group_dst=peer) if op.op is dist.isend else self._receive(op, peer)
                    )
                    works.append((peer, work))
            for peer, work in works:  # noqa: B007  # for the message
                if not work.wait(self.timeout):
                    raise RuntimeError("it was not completed")
        except RuntimeError as error:
            who = f"device {peer} of {self.size}" if peer >= 0 else "another device"
            raise ExchangeError(f"{name} with {who} did not take place (step {self.step}): {_said(error)}") from error
        self.sent += sum(x.numel() for x in sends.values())
        return {s: out.get(s, torch.empty(0, dtype=torch.uint8, device=self.device)) for s in receives}

    def _receive(self, op: dist.P2POp, peer: int) -> dist.Work:
        work = dist.irecv(op.tensor, group=self.group, group_src=peer)
        assert work is not None, "this process is one of the group"
        return work


def _said(error: RuntimeError) -> str:
    """The first line of a message, without where in torch it was raised."""
    return str(error).splitlines()[0].partition("] ")[2] or str(error).splitlines()[0]
