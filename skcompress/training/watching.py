"""Looking at a network while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from ..randomness import Turn

Look = Callable[[nn.Module, int], None]


class Watchable:
    """A skorch net that shows its network before the first epoch and after each."""

    _look: Look | None = None
    # With the random numbers of the training, which go on afterwards as if nobody had looked.
    _turn: Turn | None = None
    module_: Any
    history: Any

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        super().on_train_begin(net, **kwargs)  # type: ignore[misc]
        self._show()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        super().on_epoch_end(net, **kwargs)  # type: ignore[misc]
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[misc,assignment]
        return {name: value for name, value in state.items() if name not in ("_look", "_turn")}

    def _show(self) -> None:
        if self._look is not None:
            with nullcontext() if self._turn is None else self._turn.paused():
                self._look(uncompiled(self.module_), len(self.history))


@contextmanager
def watched(net: Watchable, look: Look | None) -> Iterator[None]:
    """Let `look(network, n_epochs)` see what `net` trains, which it must not change.

    It is called with 0 before the first epoch, and after each; what it raises ends the training.
    Other threads may train meanwhile.
    """
    net._look = look
    try:
        yield
    finally:
        net._look = None


def uncompiled(module: nn.Module) -> nn.Module:
    """Give the network that `torch.compile` was given, or the one that was never compiled."""
    return getattr(module, "_orig_mod", module)
