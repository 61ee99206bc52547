"""Bounded mappings: what follows from the shapes of calls, or from specs, is worked out once and forgotten when it was not used for long."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from einfuse.runtime.capture import capturing

K = TypeVar("K")
V = TypeVar("V")

MOST = 256
"""Values that are held: more than the shapes of a model, fewer than sequences that grow token by token make."""


class Recent(MutableMapping[K, V]):
    """At most ``most`` values by key; the one that was used longest ago makes room. Threads may share it."""

    __slots__ = ("_captured", "_lock", "_values", "most")

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()
        self._captured: list[V] = []  # a CUDA graph reads their memory at every replay

    def made(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if there is none. Two threads may both make it; the one that comes first is kept, and both get it."""
        try:
            value = self[key]
        except KeyError:
            value = make()
            with self._lock:
                value = self._values.setdefault(key, value)
                self._bound()
        if capturing():
            self._captured.append(value)
        return value

    def __getitem__(self, key: K) -> V:
        with self._lock:
            value = self._values[key]
            self._values.move_to_end(key)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            self._bound()

    def __delitem__(self, key: K) -> None:
        with self._lock:
            del self._values[key]

    def __contains__(self, key: object) -> bool:
        """A look, which is no use."""
        return key in self._values

    def __iter__(self) -> Iterator[K]:
        """The keys there are now, the one that was used longest ago first."""
        with self._lock:
            return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Recent({len(self)} of {self.most})"

    def _bound(self) -> None:
        while len(self._values) > self.most:
            self._values.popitem(last=False)


class Living(Generic[K, V]):
    """Values by key, each as long as something else holds it; those used last are held here too. Threads may share it."""

    def __init__(self, most: int = MOST) -> None:
        self._last: Recent[K, V] = Recent(most)
        self._living: WeakValueDictionary[K, V] = WeakValueDictionary()

    def made(self, key: K, make: Callable[[], V]) -> V:
        """The one value of a key, made if there is none."""

        def living() -> V:
            found = self._living.get(key)
            return self._living.setdefault(key, make()) if found is None else found

        return self._last.made(key, living)

    def __len__(self) -> int:
        return len(self._living)

    def __repr__(self) -> str:
        return f"Living({len(self)}, {self._last})"
