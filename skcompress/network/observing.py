"""The one loop that runs networks over data, and the copies that it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from tqdm.auto import tqdm

from ..errors import ForwardError, SkcompressError
from ..layers.reparametrized import copied
from ..randomness import same_randomness
from .batches import Batch, device_of


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


def forward(network: nn.Module, batch: Batch, done: str = "run") -> Any:
    """Give what a network gives for one batch; an error of its own says for which."""
    with noting(done, batch):
        return network(*batch.args, **batch.kwargs)


@contextmanager
def noting(done: str, batch: Batch) -> Iterator[None]:
    """Turn what a model raises into an error that says what was done, and on which batch."""
    try:
        yield
    except (SkcompressError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as cause:
        raise ForwardError(done, batch, cause) from cause


class Reducer:
    """Accumulates something while networks run over data: what `observe` takes.

    Each method does nothing, unless it is rewritten.
    """

    def attach(self, *networks: nn.Module) -> None:
        """Register hooks on the networks that are about to run."""

    def before(self, batch: Batch) -> None:
        """Take note of the batch that the networks run on next."""

    def after(self, batch: Batch, *outputs: Any) -> None:
        """Take what the networks have given for the batch."""


def observe(
    networks: nn.Module | Sequence[nn.Module],
    data: Iterable[Batch],
    *reducers: Reducer,
    title: str = "observe",
    verbose: bool | int = False,
    gradients: bool = False,
) -> None:
    """Run networks over data once, batch by batch side by side, with reducers looking on.

    networks : one or several, which stay as they are: copies of them run in eval mode, around
        the very same parameters
    data : as `batches` gives it, or some of its batches
    gradients : whether reducers differentiate; else nothing is recorded for that

    The one place where copies, randomness, modes and the progress bar are dealt with.
    """
    models = [networks] if isinstance(networks, nn.Module) else list(networks)
    mode, done = (differentiable, "differentiated") if gradients else (torch.no_grad, "run")
    with mode(), same_randomness(device_of(models[0])):
        copies = [observer(model) for model in models]
        for reducer in reducers:
            reducer.attach(*copies)
        bar = tqdm(data, desc=title, unit="batch", total=length(data), disable=not verbose)
        for batch in bar:
            for reducer in reducers:
                reducer.before(batch)
            outputs = [forward(network, batch, done) for network in copies]
            for reducer in reducers:
                reducer.after(batch, *outputs)


@contextmanager
def differentiable() -> Iterator[None]:
    """Allow gradients, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def length(data: Iterable[Batch]) -> int | None:
    """Give the number of batches, where it is known."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None
