"""Specs of positions beside formulas from their papers, rotations by complex numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from formulas import Formula, X, check, drawn
from torch import Tensor

from einfuse.runtime.verify import Shape

N, WIDTH = 9, 12
SHAPE = Shape(2, 2, N, N, (WIDTH, 5, 3), 1)
ROW, COLUMN = torch.arange(N)[:, None], torch.arange(N)
LOW = ROW >= COLUMN
PAIR = torch.arange(WIDTH // 2, dtype=torch.float64)
SPEED = 10000 ** (-2 * PAIR / WIDTH)


def attend(s: Tensor, v: Tensor, seen: Tensor = LOW) -> Tensor:
    return s.masked_fill(~seen, -math.inf).softmax(-1) @ v


def score(x: X) -> Tensor:
    return x["q"] @ x["k"].mT / math.sqrt(x["q"].shape[-1])


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """The halves are real and imaginary parts."""
    z = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def rotary(x: X, angle: Tensor) -> Tensor:
    return score({n: turned(x[n], angle) for n in "qk"})


def yarn(x: X) -> Tensor:
    turns = 2048 / (2 * math.pi / SPEED)
    stay = ((turns - 1) / 31).clamp(0, 1)
    temperature = 1 / (0.1 * math.log(4) + 1) ** 2
    return attend(rotary(x, ROW * ((1 - stay) * SPEED / 4 + stay * SPEED)) / temperature, x["v"])


def ntk_rope(x: X) -> Tensor:
    assert SPEED[-1] * (4 ** (WIDTH / (WIDTH - 2))) ** (-2 * PAIR[-1] / WIDTH) == pytest.approx(SPEED[-1].item() / 4)
    return attend(rotary(x, ROW * (10000 * 4 ** (WIDTH / (WIDTH - 2))) ** (-2 * PAIR / WIDTH)), x["v"])


def longrope(x: X) -> Tensor:
    place = torch.where(ROW < 4, ROW, ROW / x["slow"])
    return attend(rotary(x, place * SPEED), x["v"])


def by_axes(x: X, axes: list[int]) -> Tensor:
    return attend(rotary(x, x["place"][axes].permute(1, 2, 0)[:, None] * SPEED), x["v"])


def rope_3d(x: X) -> Tensor:
    places = (ROW // 6, ROW // 2 % 3, ROW % 2)
    speed = 10000 ** (-torch.tensor([0.0, 0.5], dtype=torch.float64))
    parts = {n: [turned(part, p * speed) for part, p in zip(x[n].chunk(3, -1), places, strict=True)] for n in "qk"}
    return attend(score({n: torch.cat(p, -1) for n, p in parts.items()}), x["v"], torch.ones_like(LOW))


def xpos(x: X) -> Tensor:
    zeta = (2 * PAIR / WIDTH + 0.4) / 1.4
    turn = torch.polar(zeta ** ((ROW - COLUMN)[..., None] / 512), (ROW - COLUMN)[..., None] * SPEED)
    q, k = (torch.complex(*x[n].chunk(2, -1)) for n in "qk")
    return attend(torch.einsum("bhip,bhjp,ijp->bhij", q, k.conj(), turn).real / math.sqrt(WIDTH), x["v"])


def partial_rope(x: X) -> Tensor:
    angle = ROW * torch.tensor([1.0, 0.01], dtype=torch.float64)
    return attend(score({n: torch.cat([turned(x[n][..., :4], angle), x[n][..., 4:]], -1) for n in "qk"}), x["v"])


def cope(x: X, by: float = 1) -> Tensor:
    """The paper's listing: reversed running sums of gates, and two entries of the table; the authors' code divides by the root of the width."""
    s = score(x)
    gates = s.sigmoid() * LOW
    far = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=x["table"].shape[0] - 1)
    z = x["q"] @ x["table"].mT
    high, low = far.ceil().long(), far.floor().long()
    part = far - far.floor()
    return attend(s + (z.gather(-1, high) * part + z.gather(-1, low) * (1 - part)) / by, x["v"])


def kerple(x: X) -> Tensor:
    r1, r2 = (x[n].abs()[:, None, None] for n in ("r1", "r2"))
    return attend(score(x) - r1 * torch.log(1 + r2 * (ROW - COLUMN).clamp(min=0)), x["v"])


def fire(x: X) -> Tensor:
    c = x["c"].abs()
    far = torch.log(1 + c * (ROW - COLUMN).clamp(min=0)) / torch.log(1 + c * torch.maximum(ROW, x["reach"].abs()))
    hidden = (far[..., None] * x["w1"] + x["b1"]).relu()
    return attend(score(x) + torch.einsum("ijr,hr->hij", hidden, x["w2"]) + x["b2"][:, None, None], x["v"])


CASES: dict[str, Formula] = {
    "yarn": yarn,
    "ntk_rope": ntk_rope,
    "longrope": longrope,
    "mrope": lambda x: by_axes(x, [0, 1, 1, 2, 2, 2]),
    "interleaved_mrope": lambda x: by_axes(x, [0, 1, 2, 0, 1, 2]),
    "rope_3d": rope_3d,
    "xpos": xpos,
    "partial_rope": partial_rope,
    "nope_temperature": lambda x: attend(score(x) * (1 + 0.1 * torch.log(1.0 + (ROW + 1) // 3)), x["v"]),
    "cope": cope,
    "cope divided": lambda x: cope(x, math.sqrt(x["q"].shape[-1])),
    "kerple": kerple,
    "fire": fire,
}


@pytest.mark.parametrize("name", CASES)
def test_spec_and_tiles_against_the_formula(name: str) -> None:
    spec = name.split()[0]
    x = drawn(spec, SHAPE)
    if name == "longrope":
        x["slow"] = 1 + x["slow"].abs()
    settings: dict[str, dict[str, Any]] = {"nope_temperature": {"period": 3}, "cope divided": {"divided": True}}
    check(spec, CASES[name], x, **settings.get(name, {}))


def test_llama_3_is_a_setting() -> None:
    """As in the model's code: by wavelengths, with the mixture between two of them."""

    def llama(x: X) -> Tensor:
        out = []
        for w in (500000 ** (-2 * PAIR / WIDTH)).tolist():
            wave = 2 * math.pi / w
            smooth = (8192 / wave - 1) / (4 - 1)
            out.append(w if wave < 8192 / 4 else w / 8 if wave > 8192 else (1 - smooth) * w / 8 + smooth * w)
        return attend(rotary(x, ROW * torch.tensor(out, dtype=torch.float64)), x["v"])

    setting: dict[str, Any] = {"base": 500000.0, "factor": 8.0, "length": 8192.0, "few": 1.0, "many": 4.0, "temper": 0.0}
    check("yarn", llama, drawn("yarn", SHAPE), **setting)
