"""Results that several fits have in common, computed once: for searches over settings."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Any, TypeVar

from sklearn.base import BaseEstimator

from ..protocols import Compressor
from ..statistics.passes import GIB
from .digests import Digests, Unlike
from .footprint import n_bytes

T = TypeVar("T")
Item = TypeVar("Item")
Estimator = TypeVar("Estimator", bound=BaseEstimator)
_NOTHING, _ABSENT = object(), object()
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass
class _Entry:
    value: Any
    n_bytes: int
    spare: bool


class Memo:
    """Memory of what functions have given, so that no fit computes it twice.

    memory : bytes that the results may take. Beyond, the least recently used go first; second
        moments of inputs before all others, since only other decompositions and metrics need
        them again. 0 keeps nothing.

    A result is found again by all that its function was given: weights, network, data and
    settings, by their contents. What changes is computed anew, whether it was changed in place or
    is another object, and the results are those of a fit that shares nothing, bit for bit. Data
    that is neither tensors nor arrays, nor lists or dicts of these, such as a DataLoader, is the
    same as long as it is the same object: where it draws or augments, the first draw counts for
    all. See `digests.network_digest` for what cannot be seen of a network.

    A fit in which only `rank`, `allocation` or `sensitivity` is new costs the allocation and the
    building of the new network; one with another `scheme`, `decomposition` or `metric` costs what
    is missing for it besides. Not shared is what depends on the ranks themselves:
    ``reconstruction="sequential"`` fits each layer to what the layers before give once they are
    compressed, in every fit anew, and the compressed network is run to be compared with the
    original.

    Any number of threads may use it: what several need at once is computed by one of them, while
    the others wait. Copies and pickles of an estimator do not take it along.

    >>> import torch
    >>> from skcompress import SVDCompressor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
    >>> memo = Memo(memory=2**30)
    >>> for rank in (0.3, 0.5):
    ...     small = share(SVDCompressor(rank), memo).fit_transform(model)
    >>> memo.n_computed, memo.n_reused
    (2, 2)
    """

    def __init__(self, memory: float = 2 * GIB):
        self.memory = memory
        self.n_bytes = 0
        self.n_computed = 0
        self.n_reused = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._guard = threading.RLock()
        self._locks: weakref.WeakValueDictionary[Hashable, _Lock] = weakref.WeakValueDictionary()
        self._tokens: dict[int, Hashable] = {}
        self._alive: dict[int, object] = {}
        self._numbers = count()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Give what is known under a key, or else what `make` computes."""
        if not self.memory:
            return make()
        with self.alone(key):
            found = self.find(key, _NOTHING)
            if found is _NOTHING:
                found = make()
                self.put(key, found)
        return found  # type: ignore[no-any-return]

    def find(self, key: Hashable, default: Any = None) -> Any:
        """Give what is known under a key, if anything is."""
        with self._guard:
            entry = self._entries.get(key)
            if entry is None:
                return default
            self.n_reused += 1
            if not entry.spare:
                self._entries.move_to_end(key)
            return entry.value

    def put(self, key: Hashable, value: Any, *, spare: bool = False) -> None:
        """Keep a value that has been computed.

        spare : whether it is the first to go, whenever it is used
        """
        size = n_bytes(value)
        with self._guard:
            self.n_computed += 1
            if size > self.memory:
                return
            self._drop(key)
            self._entries[key] = _Entry(value, size, spare)
            self._entries.move_to_end(key, last=not spare)
            self.n_bytes += size
            while self.n_bytes > self.memory:
                self._drop(next(iter(self._entries)))

    @contextmanager
    def alone(self, key: Hashable) -> Iterator[None]:
        """Let nobody else compute what belongs to this key meanwhile."""
        with self._guard:
            lock = self._locks.setdefault(key, _Lock())
        with lock.inner:
            yield

    def token(self, thing: object) -> Hashable:
        """Give what stands for an object for as long as there is one, and for no other later."""
        with self._guard:
            if id(thing) not in self._tokens:
                try:
                    weakref.finalize(thing, self._tokens.pop, id(thing), None)
                except TypeError:  # kept alive, so that no other takes its place
                    self._alive[id(thing)] = thing
                self._tokens[id(thing)] = ("object", next(self._numbers))
            return self._tokens[id(thing)]

    def clear(self) -> None:
        """Forget everything."""
        with self._guard:
            self._entries.clear()
            self._alive.clear()
            self._tokens.clear()
            self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return (
            f"<Memo: {len(self)} results, {self.n_bytes:,} of {self.memory:,} bytes, "
            f"{self.n_computed} computed, {self.n_reused} used again>"
        )

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.n_bytes -= entry.n_bytes


class _Lock:
    """A lock that can be referred to weakly."""

    def __init__(self) -> None:
        self.inner = threading.RLock()


class Recall:
    """One fit's way to what is remembered: calls functions, unless it knows what they give.

    Nothing that functions are given may change in place meanwhile.
    """

    def __init__(self, memo: Memo | None = None):
        self._memo = memo if memo is not None and memo.memory else None
        self._digests = None if self._memo is None else Digests(self._memo.token)

    def __call__(
        self, function: Callable[..., T], *args: Any, aside: Mapping[str, Any] = _NONE
    ) -> T:
        """Give what `function(*args, **aside)` gives.

        aside : keywords that the result does not depend on, such as `verbose`
        """
        key = self._key(function, *args)
        if self._memo is None or key is None:
            return function(*args, **aside)
        found = self._memo.get(key, lambda: function(*args, **aside))
        self._remember(found, key)
        return found

    def each(
        self,
        function: Callable[..., Iterable[tuple[Item, T]]],
        items: Sequence[Item],
        *args: Any,
        aside: Mapping[str, Any] = _NONE,
        spare: bool = False,
    ) -> Iterator[tuple[Item, T]]:
        """Yield what `function(items, *args, **aside)` yields: a result for each item.

        The function is called with the items that are not known; each result depends on its own
        item and on the other arguments alone. Items that it yields nothing for have no result.

        spare : whether the results are the first to go when memory runs out
        """
        common = self._key(function, *args)
        if self._memo is None or common is None:
            yield from function(items, *args, **aside)
            return
        keys = {id(item): self._key(function, common, item) for item in items}
        missing = []
        for item in items:
            found = self._memo.find(keys[id(item)], _NOTHING)
            if found is _NOTHING:
                missing.append(item)
            elif found is not _ABSENT:
                self._remember(found, keys[id(item)])
                yield item, found
        if not missing:
            return
        with self._memo.alone(common):  # where others may have been faster
            rest = []
            for item in missing:
                found = self._memo.find(keys[id(item)], _NOTHING)
                if found is _NOTHING:
                    rest.append(item)
                elif found is not _ABSENT:
                    yield item, found
            absent = {id(item) for item in rest}
            for item, value in function(rest, *args, **aside) if rest else ():
                absent.discard(id(item))
                self._put(keys[id(item)], value, spare=spare)
                self._remember(value, keys[id(item)])
                yield item, value
            for key in absent:
                self._put(keys[key], _ABSENT)

    def _key(self, function: Callable[..., Any], *args: Any) -> bytes | None:
        """Digest of a call; None where some of it cannot be told apart, or nothing is kept."""
        if self._digests is None:
            return None
        try:
            return self._digests(function, *args)
        except Unlike:
            return None

    def _put(self, key: bytes | None, value: Any, **settings: Any) -> None:
        assert self._memo is not None
        if key is not None:
            self._memo.put(key, value, **settings)

    def _remember(self, value: Any, key: bytes | None) -> None:
        assert self._digests is not None
        if key is not None:
            self._digests.remember(value, key)


def share(estimator: Estimator, memo: Memo | None) -> Estimator:
    """Let an estimator and all compressors inside it, such as steps of a Pipeline, share results.

    memo : what they share; None for nothing any more

    Gives the estimator itself. Later `set_params` may put in compressors that do not share, and
    `clone` makes such: share last.
    """
    for inner in compressors_in(estimator):
        inner._shared = memo
    return estimator


def compressors_in(estimator: BaseEstimator) -> Iterator[Compressor]:
    """Yield an estimator, and those inside it, such as steps of a Pipeline: the compressors."""
    for inner in (estimator, *estimator.get_params(deep=True).values()):
        if isinstance(inner, Compressor):
            yield inner
