"""Results that several fits have in common, computed once: for searches over settings."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from sklearn.base import BaseEstimator
from torch import nn

from ..protocols import Compressor
from ..statistics.passes import GIB
from .digests import Unlike, data_digest, network_digest
from .footprint import n_bytes

T = TypeVar("T")
Estimator = TypeVar("Estimator", bound=BaseEstimator)
_NOTHING = object()


@dataclass
class _Entry:
    value: Any
    n_bytes: int
    spare: bool


class Shared:
    """Memory of what fits of compressors have found out, for other fits to use.

    memory : bytes that the results may take. Beyond, the least recently used go first; second
        moments of inputs before all others, since only other decompositions and metrics need
        them again. 0 keeps nothing.

    Kept are factorisations of weights and, where there is data, what they were made from:
    second moments, gradients, outputs of the original network. A fit in which only `rank`,
    `allocation` or `sensitivity` is new costs the allocation and the building of the new
    network; one with another `scheme`, `decomposition` or `metric` costs what is missing for it
    besides. The results are those of a fit that shares nothing, bit for bit.

    Everything is found again by its contents: weights, network, data and settings. What changes
    is computed anew, whether it was changed in place or is another object. Data that is
    neither tensors nor arrays, nor lists or dicts of these, such as a DataLoader, is the same as
    long as it is the same object: where it draws or augments, the first draw counts for all. See
    `digests.network_digest` for what cannot be seen of a network.

    Not shared is what depends on the ranks themselves: ``reconstruction="sequential"`` fits each
    layer to what the layers before give once they are compressed, in every fit anew, and the
    compressed network is run to be compared with the original.

    Any number of threads may use it: what several need at once is computed by one of them, while
    the others wait. Copies and pickles of an estimator do not take it along.

    >>> import torch
    >>> from skcompress import SVDCompressor
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
    >>> shared = Shared(memory=2**30)
    >>> for rank in (0.3, 0.5):
    ...     small = share(SVDCompressor(rank), shared).fit_transform(model)
    >>> shared.n_computed, shared.n_reused
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

    def get(self, key: Hashable | None, make: Callable[[], T]) -> T:
        """Give what is known under a key, or else what `make` computes; under None always that."""
        if key is None or not self.memory:
            return make()
        found = self.find(key, _NOTHING)
        if found is _NOTHING:
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

    def put(self, key: Hashable | None, value: Any, *, spare: bool = False) -> None:
        """Keep a value that has been computed.

        spare : whether it is the first to go, whenever it is used
        """
        if not self.memory:
            return
        size = n_bytes(value)
        with self._guard:
            self.n_computed += 1
            if key is None or size > self.memory:
                return
            self._drop(key)
            self._entries[key] = _Entry(value, size, spare)
            self._entries.move_to_end(key, last=not spare)
            self.n_bytes += size
            while self.n_bytes > self.memory:
                self._drop(next(iter(self._entries)))

    @contextmanager
    def alone(self, *keys: Hashable) -> Iterator[None]:
        """Let nobody else compute what belongs to these keys meanwhile."""
        with self._guard:
            locks = [self._locks.setdefault(key, _Lock()) for key in set(keys)]
        # In the same order for everybody: nobody waits for one who waits for them.
        locks.sort(key=lambda lock: lock.number)
        with ExitStack() as held:
            for lock in locks:
                held.enter_context(lock.inner)
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
            f"<Shared: {len(self)} results, {self.n_bytes:,} of {self.memory:,} bytes, "
            f"{self.n_computed} computed, {self.n_reused} used again>"
        )

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.n_bytes -= entry.n_bytes


class _Lock:
    _numbers = count()

    def __init__(self) -> None:
        self.inner = threading.RLock()
        self.number = next(self._numbers)


@dataclass(frozen=True)
class Known:
    """What is known of one network on one data set.

    of : the two as digests; None where they have none, or nothing is kept
    """

    shared: Shared
    of: tuple[Hashable, ...] | None

    @classmethod
    def about(cls, shared: Shared, model: nn.Module, data: object) -> Known:
        """Look at a network and data as they are now."""
        if not shared.memory:
            return cls(shared, None)
        try:
            of = (network_digest(model), data_digest(data, shared.token))
        except Unlike:
            return cls(shared, None)
        return cls(shared, of)

    def key(self, *what: Hashable) -> Hashable | None:
        """Name a result; its first word says what it is, the others what else it depends on."""
        return None if self.of is None or None in what else (*what, *self.of)

    def but(self, *change: Hashable) -> Known:
        """Look at the network after a change that these words describe."""
        return Known(self.shared, None if self.of is None else (*self.of, *change))


def share(estimator: Estimator, shared: Shared | None) -> Estimator:
    """Let an estimator and all compressors inside it, such as steps of a Pipeline, share results.

    shared : what they share; None for nothing any more

    Gives the estimator itself. Later `set_params` may put in compressors that do not share, and
    `clone` makes such: share last.
    """
    for inner in compressors_in(estimator):
        inner._shared = shared
    return estimator


def compressors_in(estimator: BaseEstimator) -> Iterator[Compressor]:
    """Yield an estimator, and those inside it, such as steps of a Pipeline: the compressors."""
    for inner in (estimator, *estimator.get_params(deep=True).values()):
        if isinstance(inner, Compressor):
            yield inner
