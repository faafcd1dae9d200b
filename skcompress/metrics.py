"""How large and how fast a model is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from .masks import n_nonzero

_BY_CHANNEL = (torch.per_channel_affine, torch.per_channel_affine_float_qparams)


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
    """Count the bytes of memory that the numbers of a model are in, each storage once.

    Of parameters, buffers, and what quantised layers have packed; of sparse tensors the values
    and the indices. A view of a part keeps all of its storage.

    >>> count_bytes(torch.nn.Linear(3, 2))
    32
    """
    sizes = _storages((*model.parameters(), *model.buffers()))
    # Unpacked only to be counted, module after module: a copy of a whole model may not fit.
    packed = (_storages(_packed(module)) for module in model.modules())
    return sum(sizes.values()) + sum(
        size for found in packed for storage, size in found.items() if storage not in sizes
    )


def _storages(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, int], int]:
    """Bytes of each storage that these tensors are views of."""
    parts = [part for tensor in tensors for part in _parts(tensor)]
    found = [(part.device, part.untyped_storage()) for part in parts]
    # On the meta device all addresses are zero.
    return {(device, s.data_ptr() or s._cdata): s.nbytes() for device, s in found}


def _packed(module: nn.Module) -> list[Tensor]:
    """What a module holds in other ways than as parameters and buffers, and saves all the same."""
    usual = nn.Module._save_to_state_dict, nn.Module.get_extra_state
    if (type(module)._save_to_state_dict, type(module).get_extra_state) == usual:
        return []
    saved: dict[str, Any] = {}
    module._save_to_state_dict(saved, "", keep_vars=True)
    found, left = [], tree_leaves(saved)
    while left:
        one = left.pop()
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, torch.ScriptObject):
            left += tree_leaves(one.__getstate__())  # type: ignore[attr-defined]
    return found


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with a storage of their own that one consists of."""
    if is_lazy(tensor):
        return
    if is_traceable_wrapper_subclass(tensor):  # of quantised numbers and their scales, for one
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    elif tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        yield tensor.detach()
        if tensor.is_quantized and tensor.qscheme() in _BY_CHANNEL:
            yield from (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
        return
    for part in parts:
        yield from _parts(part)


def count_flops(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Floating-point operations of one forward pass, as torch's own counter counts them.

    A multiply-add counts as two. Matrix products, convolutions, recurrent layers and attention
    are counted; elementwise operations and products with a single vector are not.

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
    meanwhile; attention counts on the CPU as it does on a GPU, and fused recurrent layers as
    their steps do. What other threads compute does not count.
    """
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    missing = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        aten.mkldnn_rnn_layer: _layer_flops,
        aten._cudnn_rnn: _recurrent_flops,
        aten.miopen_rnn: _recurrent_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=missing)
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


def _recurrent_flops(
    inputs: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any
) -> int:
    """FLOPs of recurrent layers for tensors of these shapes: every position meets every matrix.

    inputs : (steps, batch, width) in either order, or (positions, width) of a packed sequence
    """
    return 2 * prod(inputs[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2)


def _layer_flops(
    inputs: Sequence[int], of_inputs: Sequence[int], of_state: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of one direction of one layer, with the shapes of its two matrices."""
    return _recurrent_flops(inputs, [of_inputs, of_state])


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
