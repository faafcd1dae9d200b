"""How large and how fast a model is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from .masks import n_nonzero


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Count the stored numbers of a model; what is shared counts once, buffers do not.

    Lazy layers that have seen no batch store nothing yet.

    >>> count_parameters(torch.nn.Linear(3, 2))
    8
    """
    return sum(
        p.numel()
        for p in model.parameters()
        if not isinstance(p, UninitializedParameter) and (p.requires_grad or not trainable_only)
    )


def count_nonzeros(model: nn.Module) -> int:
    """Count the parameters of a model that are not zero; what is shared counts once.

    >>> layer = torch.nn.Linear(3, 2)
    >>> _ = torch.nn.init.zeros_(layer.bias)
    >>> count_nonzeros(layer)
    6
    """
    return sum(
        n_nonzero(p) for p in model.parameters() if not isinstance(p, UninitializedParameter)
    )


def count_bytes(model: nn.Module) -> int:
    """Count the bytes of parameters and buffers, each storage once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values() if not is_lazy(t))


def count_flops(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Floating-point operations of one forward pass, as torch's own counter counts them.

    A multiply-add counts as two. Matrix products, convolutions and attention are
    counted; elementwise operations and products with a single vector are not.

    >>> count_flops(torch.nn.Linear(3, 2), torch.zeros(5, 3))
    60
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), flop_counter() as counter:
            model(*args, **kwargs)
    finally:
        for module, training in modes.items():
            module.training = training
    total: int = counter.get_total_flops()
    return total


@contextmanager
def flop_counter() -> Iterator[Any]:
    """Count what is computed inside with a `torch.utils.flop_counter.FlopCounterMode`.

    torch's fused transformer kernels, which the counter takes for nothing, stand aside
    meanwhile, and attention counts on the CPU as it does on a GPU. What other threads compute
    does not count.
    """
    from torch.utils.flop_counter import FlopCounterMode

    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=on_cpu)
    # It notes by hooks of all modules which of them run: those of other threads as well.
    tracker: Any = counter.mod_tracker
    tracker._fw_pre_hook = _in_this_thread(tracker._fw_pre_hook)
    tracker._fw_post_hook = _in_this_thread(tracker._fw_post_hook)
    with _without_fast_path(), counter:
        yield counter


def _in_this_thread(hook: Callable[..., None]) -> Callable[..., None]:
    own = threading.get_ident()

    def guarded(*args: Any) -> None:
        if threading.get_ident() == own:
            hook(*args)

    return guarded


class _FastPath:
    """Whether torch's fused transformer kernels were on before the first thread was here."""

    lock = threading.Lock()
    n_threads = 0
    before = True


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Switch torch's fused transformer kernels off, for as long as any thread is inside."""
    with _FastPath.lock:
        if not _FastPath.n_threads:
            _FastPath.before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _FastPath.n_threads += 1
    try:
        yield
    finally:
        with _FastPath.lock:
            _FastPath.n_threads -= 1
            if not _FastPath.n_threads:
                torch.backends.mha.set_fastpath_enabled(_FastPath.before)


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of attention for tensors of these shapes, (batch, heads, positions, width)."""
    batch, heads, n, width = query
    return 2 * batch * heads * n * key[2] * (width + value[3])


def measure_latency(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    min_run_time: float = 0.2,
) -> float:
    """Median seconds of one forward pass, by `torch.utils.benchmark.Timer`.

    args, kwargs : what the model is called with
    min_run_time : seconds to measure for

    Measured with the number of threads that torch is set to, in eval mode, without
    gradients.
    """
    from torch.utils.benchmark import Timer

    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.inference_mode():
            timer = Timer(
                "model(*args, **kwargs)",
                globals={"model": model, "args": tuple(args), "kwargs": dict(kwargs or {})},
                num_threads=torch.get_num_threads(),
            )
            return timer.blocked_autorange(min_run_time=min_run_time).median
    finally:
        for module, training in modes.items():
            module.training = training
