"""All factors of a weight fitted together to the outputs, from moments alone.

Each factor by itself is least squares, and a closed form gives one after the other: the first from
an average over the places of the kernel, or from the weight alone, the last exactly. Together
they are no quadratic problem any more, but a smooth one in few numbers, whose value and gradient
take one product with the gram. A few iterations of a quasi-Newton method from the closed form find
what it has missed; the data is not looked at again, and nothing is differentiated but a product of
factors.

References: Liu & Nocedal 1989 (L-BFGS); arXiv 2511.04494 (data-aware tensor decompositions).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..protocols import Factorization, Factors, Metric, Rank, SecondMoment
from ..protocols.product import multiply_out

# Share of the outputs lost from which on products in float32 serve.
_MUCH = 1e-2
# Most of what is to be gained is gained in the first ones.
ITERATIONS = 30


class RefinedFactorization(Factorization):
    """A factorisation at one rank, its factors refined."""

    def __init__(self, closed: Factorization, weight: Tensor, metric: Metric, rank: Rank):
        self.curve = closed.curve
        self._factors = refined(closed.factors(weight, rank), metric)

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        return self._factors

    def trim(self, rank: Rank) -> RefinedFactorization:
        return self


def refined(factors: Factors, metric: Metric) -> Factors:
    """Lower the mean squared error of the outputs, by changing all factors.

    Gives factors of the same shapes and dtype; the given ones are untouched. Where these are
    optimal already, as in a product of two matrices, they come back.
    """
    energy = metric.energy or 1.0
    values: list[float] = []
    # A caller's inference mode would make tensors that nothing can be differentiated by.
    with torch.inference_mode(False), torch.enable_grad():
        # In units of their own size, so that steps and tolerances mean the same for every weight.
        sizes = [float(torch.linalg.vector_norm(t, dtype=torch.float64)) or 1.0
                 for t in factors.stored]  # fmt: skip
        tensors = [
            (t.to(metric.cross, memory_format=torch.contiguous_format) / size).requires_grad_()
            for t, size in zip(factors.stored, sizes, strict=True)
        ]

        def stored() -> list[Tensor]:
            return [size * t for t, size in zip(tensors, sizes, strict=True)]

        # Most of the time goes into products with the moments. Where much is lost they need not be
        # exact to more digits than the moments of float32 inputs are.
        inputs = metric.inputs

        def evaluate() -> Tensor:
            """Relative error; and its gradient, written to the tensors."""
            weight = multiply_out(factors.holding(stored())).flatten(1)
            with torch.no_grad():
                given = inputs.times(weight.to(inputs.diagonal.dtype)).to(weight)
                slope = given - metric.cross
                value = ((slope - metric.cross) * metric.weighed(weight)).sum() + metric.energy
                gradient = metric.weighed(slope) * (2 / energy)
                values.append(float(value) / energy)
            slopes = torch.autograd.grad(weight, tensors, gradient)
            for tensor, found in zip(tensors, slopes, strict=True):
                tensor.grad = found.contiguous()
            return value / energy

        optimizer = torch.optim.LBFGS(
            tensors, max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe",
            tolerance_grad=1e-9, tolerance_change=1e-12,
        )  # fmt: skip
        if float(evaluate()) > _MUCH and _in_range(metric.inputs):
            inputs = metric.inputs.single()
        optimizer.step(evaluate)  # type: ignore[arg-type]
        inputs = metric.inputs
        evaluate()
    # An error below zero is one of moments that do not belong together, by rounding.
    if not 0 <= values[-1] <= values[0]:
        return factors
    found = zip(stored(), factors.stored, strict=True)
    return factors.holding([new.detach().to(old.dtype) for new, old in found])


def _in_range(inputs: SecondMoment) -> bool:
    """Whether float32 holds the second moment."""
    return 1e-25 < float(inputs.diagonal.max()) < 1e25
