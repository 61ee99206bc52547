"""One cascade that breaks each rule of the verifier, and no other."""

from __future__ import annotations

import re

import pytest

from einfuse.ir import SpecError, verify
from einfuse.ir.text import parse
from einfuse.ir.verify import Property

HEAD = "cascade c { rank i: query = N rank j: key = N rank d: feature = 4 in x[N, N]: float in y[N, 4]: float"
SUM = "o[i] = sum[j] x[i, j] "

BROKEN: dict[str, tuple[str, tuple[Property, ...]]] = {
    "V1": ("rank i: key = M " + SUM, ()),
    "V2": ("o[i] = t[i] t[i] = y[i, 0]", ()),
    "V3": ("o[i] = y[i]", ()),
    "V4": ("o[i] = x[i, j]", ()),
    "V5": ("o[i] = sum[i] x[i, i]", ()),
    "V6": ("fold j { state o[j] = sum x[j, j] }", ()),
    "V7": ("fold j { state o[i] = sum x[i, j] carry o'[i] }", ()),
    "V8": ("fold j split 2 { state o[i] = set x[i, j] }", ()),
    "V9": (SUM, ("fused",)),
    "V10": ("s[i, j] = x[i, j] where j <= i o[i] = sum[j] s[i, j]", ("spaced",)),
    "V11": (SUM + "where x[i, j]", ()),
    "V12": ("t[i] = y[i, 0]", ()),
    "V13": ("fold j { state o[i] = sum x[i, j] }", ("scheduled",)),
    "V15": ("fold j { state o[i] = sum x[i, j] }", ("flat",)),
    "V16": ("o[i] = sum[d] y[i, d] where d < 2", ("canonical",)),
    "V17": ("fold j step 4 { state o[i] = sum x[i, j] }", ("ranged",)),
    "V18": ("fold j step 4 { state o[i] = sum x[i, j] }", ("blocked",)),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(rule: str) -> None:
    body, properties = BROKEN[rule]
    with pytest.raises(SpecError, match=rf"\({rule}\)"):
        verify.verify(parse(f"{HEAD} {body} out o }}"), *properties)


def test_every_rule_is_listed_and_tested() -> None:
    listed = re.findall(r"^(V\d+)  ", verify.__doc__ or "", re.MULTILINE)
    assert set(listed) == set(BROKEN)
    assert set(listed) | {"V14"} == {f"V{n}" for n in range(1, 19)}
