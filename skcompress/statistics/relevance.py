"""Rules by which layers hand relevance back, as gradients of a changed forward.

Layer-wise relevance propagation gives each output's relevance to what it was made of, in
proportion. Wherever a network is linear, or linear piece by piece (ReLU, pooling, adding,
a batch normalisation in eval mode), that is input times gradient. For layers with weights the
gradient is changed:

- epsilon: outputs y near zero, to which large contributions of both signs add up, hand on less than
  they got, by the factor |y| / (|y| + epsilon rms(y));
- positive (z+, or alpha-1-beta-0): only contributions of the output's positive part count: the
  layer is taken to be W+ x+ + W- x-, scaled to the output that it gives.

What biases and shifts contribute ends there. The relevance of one number of a weight is the number
times this gradient.

References: Bach et al. 2015, doi 10.1371/journal.pone.0130140; Montavon et al. 2019,
doi 10.1007/978-3-030-28954-6_10 (rules as gradients); Yeom et al. 2021, arXiv 1912.08881.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

RULES = ("epsilon", "positive")
# In units of the root mean square of what a layer gives.
EPSILON = 0.05


class _Damped(torch.autograd.Function):
    """Pass a tensor on; what comes back is damped where the tensor is near zero."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        size = output.abs()
        floor = EPSILON * output.square().mean().sqrt()
        ctx.save_for_backward(size / (size + floor).clamp(min=torch.finfo(output.dtype).tiny))
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (factor,) = ctx.saved_tensors
        return gradient * factor


def set_rule(layer: nn.Module, rule: str) -> None:
    """Make a layer hand relevance back by a rule: the gradient of its output becomes another.

    layer : of an observed copy, with its weight as a parameter. Of layers that are neither linear
        nor convolutions, "positive" is "epsilon".
    """
    if rule == "positive" and isinstance(layer, nn.Linear | _ConvNd):
        layer.register_forward_hook(_positive)
    else:
        layer.register_forward_hook(_epsilon)


def _epsilon(layer: nn.Module, args: Any, output: Any) -> Any:
    return _Damped.apply(output) if isinstance(output, Tensor) else None


def _positive(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    # The calls in here come by this hook again.
    if getattr(layer, "_inside", False):
        return output
    layer._inside = True  # type: ignore[assignment]
    try:
        whole: Tensor = layer.weight  # type: ignore[assignment]
        parts = []
        for sign in (1, -1):
            weight = sign * (sign * whole).clamp(min=0)
            settings = {"weight": weight}
            if layer.bias is not None:
                settings["bias"] = torch.zeros_like(layer.bias)  # type: ignore[arg-type]
            parts.append(functional_call(layer, settings, (sign * (sign * args[0]).clamp(min=0),)))
    finally:
        layer._inside = False  # type: ignore[assignment]
    positive = parts[0] + parts[1]
    scale = output / positive.clamp(min=1e-6 * float(positive.detach().abs().max()) + 1e-30)
    shared_out = positive * scale.detach()
    # Where nothing contributes to the output's sign, its value stays all the same.
    return shared_out + (output - shared_out).detach()
