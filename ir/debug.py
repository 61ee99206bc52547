"""``EINFUSE_DEBUG=passes,plan,source,launch`` prints to stderr what is made, as it is made.

`passes`: every cascade after each pass. `plan`: the plan of each kernel (`einfuse.codegen.plan`). `source`: its text. `launch`: a line for each
launch, with its sizes.

What is found in the cache is not made again and not shown: set ``EINFUSE_CACHE`` to an empty folder to see all of it.
"""

from __future__ import annotations

import os
import sys
from typing import Literal, get_args

VARIABLE = "EINFUSE_DEBUG"
Topic = Literal["passes", "plan", "source", "launch"]
TOPICS: tuple[Topic, ...] = get_args(Topic)

_DATA = getattr(os.environ, "_data", None)
_HELD, _KEY = (os.environ, VARIABLE) if _DATA is None else (_DATA, os.environ.encodekey(VARIABLE))
"""What CPython's `os.environ` looks into, and by which key: asked for what is not set, it raises an error and catches it, in 0.7 us."""


def enabled(topic: Topic) -> bool:
    """Whether the variable names the topic. Raises ValueError where it names anything else than topics."""
    if _KEY not in _HELD:  # the common case, on the way of every launch
        return False
    text = os.environ[VARIABLE]
    if not text:
        return False
    asked = {part.strip() for part in text.split(",")}
    unknown = sorted(asked - {*TOPICS})
    if unknown:
        raise ValueError(f"{VARIABLE} names {', '.join(unknown)}; its topics are {', '.join(TOPICS)}")
    return topic in asked


def show(title: str, text: str = "") -> None:
    """One block on stderr, with a heading."""
    print(f"# {title}", *([text] if text else []), sep="\n", file=sys.stderr, flush=True)
