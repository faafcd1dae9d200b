"""A copy to observe in place of the user's model, its forwards, and untouched randomness."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..layers.reparametrized import copied
from .batches import Batch


def observer(model: nn.Module) -> nn.Module:
    """Copy the modules of `model`, in eval mode, around the very same parameters.

    Modes, hooks, buffers and attributes of the copy are its own, so that it can be run
    and looked into without a trace in the user's model. What `torch.compile` made of modules
    runs without being compiled: hooks that come and go would compile it anew.
    """
    # A look-up with max_norm rescales the weight itself, and a lazy layer makes its own.
    rescaled = [m for m in model.modules() if getattr(m, "max_norm", None) is not None]
    written = {id(p) for m in rescaled for p in m.parameters(recurse=False)}
    written |= {id(p) for p in model.parameters() if isinstance(p, UninitializedParameter)}
    # Made in inference mode: no gradient can go through them.
    written |= {id(p) for p in model.parameters() if p.is_inference()}
    result = copied(model, {id(p): p for p in model.parameters() if id(p) not in written})
    for module in result.modules():
        if "dynamo_ctx" in vars(module):
            module.forward = _plainly(module)  # type: ignore[method-assign]
    return result.eval()


def _plainly(compiled: nn.Module) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return compiled._orig_mod(*args, **kwargs)  # type: ignore[operator]

    return forward


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch's compiler out of a function, without importing it where nobody else has."""
    if "torch._dynamo" not in sys.modules:
        return function
    return torch.compiler.disable(function)  # type: ignore[no-any-return]


def put(model: nn.Module, module: nn.Module, replacement: nn.Module) -> None:
    """Put another module wherever `model` has this one, under all of its names."""
    for parent in list(model.modules()):
        for name, inner in list(parent._modules.items()):
            if inner is module:
                setattr(parent, name, replacement)


def _remembered(device: torch.device) -> Callable[[], None]:
    """Give what brings the global random states back to what they are now."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_device is not None:
            torch.cuda.set_rng_state(of_device, device)

    return restore


@contextmanager
def restored_randomness(device: torch.device) -> Iterator[None]:
    """Restore the global random states afterwards: of torch, numpy and Python.

    For a caller around whom no other thread does the same, whatever threads it starts itself.
    """
    restore = _remembered(device)
    try:
        yield
    finally:
        restore()


# The states are those of the whole process: of two threads at a time, one would put back what the
# other has drawn.
_alone = threading.RLock()


class Turn:
    """A thread's turn with the global random states, which others wait for."""

    def __init__(self, device: torch.device):
        self._device = device
        self._restore = _remembered(device)

    def end(self) -> None:
        """Put back the states as they were found."""
        self._restore()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let other threads have theirs meanwhile, then go on with the numbers that come next.

        Not where the turn is inside another one of the same thread.
        """
        resume = _remembered(self._device)
        self._restore()
        _alone.release()
        try:
            yield
        finally:
            _alone.acquire()
            self._restore = _remembered(self._device)
            resume()


@contextmanager
def same_randomness(device: torch.device) -> Iterator[Turn]:
    """Find the global random states afterwards as they were, whatever other threads draw.

    Even a DataLoader that does not shuffle draws from torch's, and what shuffles or
    augments gives the same batches each time that this starts from the same state. One thread
    at a time: others wait, so that none is to be waited for inside, unless in `Turn.paused`.
    """
    with _alone:
        turn = Turn(device)
        try:
            yield turn
        finally:
            turn.end()


def forward(copy: nn.Module, number: int, batch: Batch, owner: str) -> Any:
    """Give what a model gives for one batch; an error of its own gets a note that says which."""
    with noting("run", number, batch, owner):
        return copy(*batch.args, **batch.kwargs)


@contextmanager
def noting(done: str, number: int, batch: Batch, owner: str) -> Iterator[None]:
    """Add to an error what was done with the model, and on which batch."""
    try:
        yield
    except Exception as error:
        shapes = [f"{tuple(x.shape)}" for x in batch.args if hasattr(x, "shape")]
        shapes += [f"{k} {tuple(v.shape)}" for k, v in batch.kwargs.items() if hasattr(v, "shape")]
        note = (
            f"while the model was {done} on batch {number} (counted from 0) of the data of "
            f"{owner}, with inputs of shape {', '.join(shapes) or 'unknown'}"
        )
        if hasattr(error, "add_note"):
            error.add_note(note)
        elif error.args and isinstance(error.args[0], str):  # before Python 3.11
            error.args = (f"{error.args[0]}\n{note}", *error.args[1:])
        raise
