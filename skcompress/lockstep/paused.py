"""Forwards that stand still before a layer, until it is known what the layer is to be.

The forward of a user's model is any Python code: it cannot be cut into the steps from one layer
to the next, nor begun in its middle. But it can wait. Each runs on a stack of its own (a
greenlet), all in one thread, and switches back to the caller before the first call of every
watched layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import wraps
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from ..network.addends import Place
from ..network.batches import Batch
from ..network.observing import forward, put, uncompiled

Call = tuple[tuple[Any, ...], dict[str, Any]]


class PausingNetwork:
    """A network whose forwards pause before some layers, which can be replaced meanwhile.

    model : an observed copy, whose modules may be changed
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self.model = model
        self._replacements: dict[str, nn.Module] = {}
        for name in names:
            self._watch(name, model.get_submodule(name))

    def _watch(self, name: str, module: nn.Module) -> None:
        # From within compiled code the caller would go on among what is to be compiled.
        @uncompiled
        def stop(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            current = getcurrent()
            if isinstance(current, PausedForward):
                current.wait(name, args, kwargs)

        original = module.forward

        # A call has looked up the forward by the time it stops: what is put into the module's
        # place meanwhile has to be reached through this one.
        @wraps(original)
        def through(*args: Any, **kwargs: Any) -> Any:
            replacement = self._replacements.get(name)
            return (original if replacement is None else replacement.forward)(*args, **kwargs)

        module.register_forward_pre_hook(stop, with_kwargs=True)
        module.forward = through  # type: ignore[method-assign]

    def keep(self, place: Place) -> None:
        """Let forwards keep what passes here; before any of them has begun."""

        @uncompiled
        def note(_: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
            current = getcurrent()
            if isinstance(current, PausedForward):
                current.kept[place] = output if place.output else args[0]

        module = self.model.get_submodule(place.module)
        if place.output:
            module.register_forward_hook(note)
        else:  # before the call stops there
            module.register_forward_pre_hook(note, prepend=True)

    def replace(self, name: str, replacement: nn.Module) -> None:
        """Put another module in the place of a layer, for calls under way too."""
        put(self.model, self.model.get_submodule(name), replacement)
        self._replacements[name] = replacement

    def module(self, name: str) -> nn.Module:
        """Give a module of the network as it is now."""
        # The network itself, where it is a single layer, is nowhere put into.
        found = self._replacements.get(name)
        return self.model.get_submodule(name) if found is None else found


class PausedForward(greenlet):
    """One forward on one batch, which stops before the first call of each watched layer.

    at : name of the layer that it stands before; None when it is through
    call : positional and keyword arguments that the layer is about to be called with
    kept : what passed where the network keeps it
    """

    at: str | None = None
    call: Call

    def __init__(self, network: PausingNetwork, batch: Batch):
        super().__init__(lambda: forward(network.model, batch))
        self.gr_context = copy_context()  # a greenlet starts with an empty one
        self._devices = {"cpu", *(p.device.type for p in network.model.parameters())}
        self.kept: dict[Place, Tensor] = {}
        self._passed: set[str] = set()
        self._left = False

    def advance(self) -> None:
        """Go on to the next watched layer that was not passed before, or to the end."""
        self._away(self.switch)

    def leave(self) -> None:
        """Give up on what is left of the forward."""
        self._left = True
        if not self.dead:
            # What its own clean-up makes of half a forward is no news to anybody.
            with suppress(Exception):
                self._away(self.throw)

    def _away(self, switch: Callable[[], Any]) -> None:
        self.at = None
        with _same_modes(self._devices):
            switch()

    def wait(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Stop before a layer, where it was not passed before; called by the forward itself."""
        if name not in self._passed and not self._left:
            self._passed.add(name)
            self.at, self.call = name, (args, kwargs)
            try:
                with _same_modes(self._devices):
                    self.parent.switch()
            finally:
                del self.call


@contextmanager
def _same_modes(devices: Iterable[str]) -> Iterator[None]:
    """Find the modes of the thread as they were, whatever others do to them meanwhile.

    Half-way through a forward gradients, autocast or inference mode may be on.
    """
    gradients = torch.is_grad_enabled()
    dtypes = {device: torch.get_autocast_dtype(device) for device in devices}
    cache = torch.is_autocast_cache_enabled()
    # At its end torch restores all that this switches off, and with it autocast.
    with torch.inference_mode(torch.is_inference_mode_enabled()):
        torch.set_grad_enabled(gradients)
        try:
            yield
        finally:
            for device, dtype in dtypes.items():
                torch.set_autocast_dtype(device, dtype)
            torch.set_autocast_cache_enabled(cache)
