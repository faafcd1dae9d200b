"""What tells weights, networks, data and settings apart, so that results can be used again."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from itertools import chain
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import HugeWeightError, NonFiniteWeightError
from ..network.batches import Batches
from ..network.weights import Site

_PROBE = 4096
# Sums of products below which squares cannot add up to infinity.
_HUGE = 1e15
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class Unlike(Exception):  # noqa: N818 - no error: what has no digest is done without sharing
    """There is something that cannot be told apart from others by its contents."""


@lru_cache(maxsize=8)
def _probe(dtype: torch.dtype, device: torch.device) -> Tensor:
    steps = torch.arange(1, _PROBE + 1, dtype=torch.float64, device=device)
    return steps.mul_(2.399963).cos_().to(dtype)


class Fingerprint(NamedTuple):
    """What a weight is known by again.

    device : on which it was taken; on another one sums are rounded in another way
    """

    digest: int
    device: torch.device


def fingerprint(name: str, weight: Tensor) -> Fingerprint:
    """Give what changes when the values or the shape of a weight change.

    A checksum of the products of the flattened weight's rows with one fixed vector: one
    pass at the speed of memory, where hashing bytes would cost more than the SVDs saved. What
    is lost in the rounding of these products, such as a change of one number in its last
    digits, goes unnoticed.
    The same pass finds NaN and infinity, `NonFiniteWeightError` of the layer `name`, and values
    that nothing can be computed of, `HugeWeightError`.
    """
    flat = weight.reshape(-1)
    probe = _probe(weight.dtype, weight.device)
    n_rows = len(flat) // _PROBE
    rows = flat[: n_rows * _PROBE].view(n_rows, _PROBE) @ probe
    rest = flat[n_rows * _PROBE :]
    sums = torch.cat([rows, (rest @ probe[: len(rest)])[None]])
    if not torch.isfinite(sums).all():
        n_bad = int(weight.numel() - torch.isfinite(weight).sum())
        if n_bad:  # finite weights can still overflow the sums
            raise NonFiniteWeightError(name, n_bad, weight.shape)
    # Where squares add up to infinity every error would come out so; sums bound the values.
    if weight.numel() and not float(sums.abs().amax()) < _HUGE:
        norm = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
        if norm > torch.finfo(weight.dtype).max ** 0.5:
            raise HugeWeightError(name, float(weight.abs().amax()), weight.shape)
    found = hashlib.blake2b(repr(tuple(weight.shape)).encode(), digest_size=8)
    found.update(sums.cpu().numpy().tobytes())
    return Fingerprint(int.from_bytes(found.digest(), "little"), weight.device)


@lru_cache(maxsize=8)
def _odd_numbers(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(-(2**62), 2**62, (_PROBE,), generator=generator)
    return (2 * drawn + 1).to(device)


def tensor_digest(tensor: Tensor) -> bytes:
    """Digest of every bit of a tensor, its shape, dtype and device: 2 GB/s.

    The bits as integers times fixed odd ones, modulo 2^64: a single change is never missed.
    """
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        raise Unlike
    about = f"{tensor.dtype}{tuple(tensor.shape)}{tensor.device}"
    found = hashlib.blake2b(about.encode(), digest_size=16)
    if tensor.is_meta or not tensor.numel():
        return found.digest()
    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    size = _PROBE * 8
    whole = len(octets) // size
    factors = _odd_numbers(tensor.device)
    # In pieces that stay in the processor's cache.
    for piece in octets[: whole * size].split(64 * size):
        sums = (piece.clone().view(torch.int64).view(-1, _PROBE) * factors).sum(1)
        found.update(sums.cpu().numpy().tobytes())
    found.update(octets[whole * size :].cpu().numpy().tobytes())
    return found.digest()


def network_digest(model: nn.Module) -> bytes:
    """Digest of all that a network's outputs in eval mode depend on, as far as can be seen.

    Types of the modules with their plain attributes and the names of their hooks; parameters,
    buffers and other tensors by their values; and which of these are shared. Not seen are
    values that hooks, functions and objects other than modules keep to themselves.
    """
    found = hashlib.blake2b(digest_size=16)
    numbers: dict[int, int] = {}
    for module in model.modules():
        inner = {key: numbers.setdefault(id(m), len(numbers)) for key, m in module._modules.items()}
        found.update(f"{_name(type(module))}{inner};".encode())
        tensors = {**module._parameters, **module._buffers}
        for key, value in sorted(vars(module).items()):
            if isinstance(value, Tensor):
                tensors[key] = value
            elif key in _HOOKS:
                found.update(f"{key}={[_name(hook) for hook in value.values()]};".encode())
            elif not key.startswith("_") and key != "training":
                found.update(f"{key}={_described(value)};".encode())
        for key, tensor in tensors.items():
            found.update(f"{key}:".encode())
            if tensor is not None:
                if id(tensor) not in numbers:
                    found.update(tensor_digest(tensor))
                found.update(b"%d;" % numbers.setdefault(id(tensor), len(numbers)))
    return found.digest()


def _described(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_described, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_described(k)}:{_described(v)}' for k, v in value.items())}}}"
    return _name(value)


def _name(value: Any) -> str:
    """Name of a function or type, or of the type of an object."""
    if isinstance(value, partial):
        return f"partial {_name(value.func)}{_described((*value.args, *value.keywords.values()))}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


class Digests:
    """Digests of whatever functions are given, for as long as nothing changes in place.

    token : stands for data that cannot be told apart by contents, such as a DataLoader

    Tensors, arrays, networks, estimators, plain values, and dataclasses, lists, tuples and dicts
    of these. `Unlike` is raised for anything else.
    """

    def __init__(self, token: Callable[[object], Hashable]):
        self._token = token
        # By id; what is held, or told apart by a weak reference, keeps its id.
        self._known: dict[int, tuple[object, bytes]] = {}

    def remember(self, value: object, digest: bytes) -> None:
        """Let a value, which some function gave, be known by what the function was given."""
        number = id(value)
        try:
            known: object = weakref.ref(value, lambda _: self._known.pop(number, None))
        except TypeError:
            known = value
        self._known[number] = known, digest

    def __call__(self, *values: Any) -> bytes:
        """Give one digest of several values."""
        found = hashlib.blake2b(digest_size=16)
        for value in values:
            found.update(self._of(value))
        return found.digest()

    def _of(self, value: Any) -> bytes:
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}".encode()
        if id(value) in self._known:
            return self._known[id(value)][1]
        digest = self._made(value)
        self.remember(value, digest)
        return digest

    def _made(self, value: Any) -> bytes:
        if isinstance(value, Tensor):
            return tensor_digest(value)
        if isinstance(value, nn.Module):
            return network_digest(value)
        if isinstance(value, Batches):
            about = [getattr(value, f.name) for f in fields(value) if f.name not in _ASIDE]
            return self("batches", self._data(value.data), *about)
        if isinstance(value, Site):
            return self("site", value.name, value.users, value.slot.read().detach())
        if isinstance(value, BaseEstimator):
            return self(settings_digest(value))
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            digest = hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).digest()
            return self(str(value.dtype), value.shape, digest)
        if isinstance(value, tuple | list | PackedSequence):
            return self(_name(value), len(value), *value)
        if isinstance(value, Mapping):
            return self(_name(value), len(value), *chain.from_iterable(value.items()))
        if is_dataclass(value):
            return self(_name(value), *(getattr(value, f.name) for f in fields(value)))
        if isinstance(value, FunctionType):
            return self(_name(value))
        raise Unlike

    def _data(self, data: object) -> Hashable:
        """Contents of data, or the token of the object."""
        try:
            return self._of(data)
        except Unlike:
            return repr(self._token(data))


# Of batches: whose they are says nothing of them.
_ASIDE = ("owner", "data")


def settings_digest(estimator: BaseEstimator) -> str:
    """Write an estimator with all its parameters; `Unlike` where some are no plain values."""
    words = [_name(type(estimator))]
    for name, value in sorted(estimator.get_params(deep=True).items()):
        if isinstance(value, BaseEstimator):
            words.append(f"{name}={_name(type(value))}")
        elif _is_plain(value):
            words.append(f"{name}={value!r}")
        else:
            raise Unlike
    return " ".join(words)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, (*_PLAIN, np.integer, np.floating))
