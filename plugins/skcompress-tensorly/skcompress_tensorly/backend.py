"""TensorLy on torch tensors, in the calling thread and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tensorly as tl

# Loaded here, once: two threads that load it at the same moment can meet it half made.
import tensorly.backend.pytorch_backend
import torch
from tensorly.tenalg.core_tenalg import CoreTenalgBackend
from torch import Tensor

# TensorLy 0.9, the last one for Python 3.10, takes no tensor algebra but its own: the
# results are the same, but large layers need much more memory and time.
TAKES_ALGEBRA = tuple(map(int, tl.__version__.split(".")[:2])) >= (0, 10)


class Contraction(CoreTenalgBackend, backend_name="contraction"):
    """TensorLy's tensor algebra with a matricised product that fits into memory.

    TensorLy's own writes the Khatri-Rao product out: for a kernel axis of a 512 x 512 x
    3 x 3 weight at rank 500 that is 3 GB. Contracting the longest axis first takes as
    many operations and a hundredth of the memory. The axes that a sweep visits one after
    the other mostly begin with the same contraction, so the last one is remembered.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def unfolding_dot_khatri_rao(self, tensor: Tensor, cp_tensor: tuple, mode: int) -> Tensor:
        """Unfold `tensor` along `mode`, times the Khatri-Rao product of the other factors.

        cp_tensor : weights (r,) or None, and one factor (size, r) for each axis
        Returns (size of `mode`, r).
        """
        weights, factors = cp_tensor
        axes = [axis for axis in range(tensor.dim()) if axis != mode]
        longest = max(axes, key=lambda axis: tensor.shape[axis])
        product = self._contract(tensor, factors[longest], longest)
        for axis in axes:
            if axis != longest:
                shape = [1] * product.dim()
                shape[axis], shape[-1] = factors[axis].shape
                product = (product * factors[axis].reshape(shape)).sum(axis, keepdim=True)
        product = product.reshape(tensor.shape[mode], -1)
        return product if weights is None else product * weights

    def _contract(self, tensor: Tensor, factor: Tensor, axis: int) -> Tensor:
        if self._last is None or self._last[0] is not tensor or self._last[1] is not factor:
            product = torch.tensordot(tensor, factor, dims=([axis], [0])).unsqueeze(axis)
            self._last = (tensor, factor, product)
        return self._last[2]


@contextmanager
def torch_backend() -> Iterator[None]:
    """Let TensorLy compute with torch inside the block, in this thread only.

    `tensorly.backend_context`, also with `local_threadsafe=True`, sets the default of
    all threads when it is left, so the two switches are made by hand.
    """
    backend, algebra = tl.backend.current_backend(), tl.tenalg.current_backend()
    try:
        tl.backend.set_backend("pytorch", local_threadsafe=True)
        if TAKES_ALGEBRA:
            tl.tenalg.set_backend(Contraction(), local_threadsafe=True)
        yield
    finally:
        tl.backend.set_backend(backend, local_threadsafe=True)
        if TAKES_ALGEBRA:
            tl.tenalg.set_backend(algebra, local_threadsafe=True)
