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

from math import prod

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ..protocols import Factors, Metric, SecondMoment
from ..protocols.product import multiply_out

# Share of the outputs lost from which on products in float32 serve.
_MUCH = 1e-2
# Most of what is to be gained is gained in the first ones.
ITERATIONS = 30


def refined(factors: Factors, metric: Metric) -> Factors:
    """Lower the mean squared error of the outputs, by changing all factors.

    Gives factors of the same shapes and dtype; the given ones are untouched. Where these are
    optimal already, as a product of two matrices in closed form, they come back.
    """
    if _is_product_of_matrices(factors):
        return factors
    # In units of their own size, so that steps and tolerances mean the same for every weight.
    sizes = [float(torch.linalg.vector_norm(t, dtype=torch.float64)) or 1.0 for t in factors.stored]
    given = zip(factors.stored, sizes, strict=True)
    start = torch.cat([(t.to(metric.cross) / size).flatten() for t, size in given])
    numbers = [t.numel() for t in factors.stored]
    energy = metric.energy or 1.0

    def stored(flat: Tensor) -> list[Tensor]:
        parts = zip(flat.split(numbers), factors.stored, sizes, strict=True)
        return [size * part.reshape(t.shape) for part, t, size in parts]

    # Most of the time goes into products with the moments. Where much is lost they need not be
    # exact to more digits than the moments of float32 inputs are.
    inputs = metric.inputs

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """Relative error, and its gradient."""
        # A caller's inference mode would make tensors that nothing can be differentiated by.
        with torch.inference_mode(False), torch.enable_grad():
            variables = torch.tensor(flat, device=start.device).requires_grad_()
            weight = multiply_out(factors.holding(stored(variables))).flatten(1)
            with torch.no_grad():
                given = inputs.times(weight.to(inputs.diagonal.dtype)).to(weight)
                slope = given - metric.cross
                value = ((slope - metric.cross) * metric.weighed(weight)).sum() + metric.energy
                gradient = metric.weighed(slope) * (2 / energy)
            # As a sum: given gradients to start from, torch imports sympy, which takes seconds.
            (found,) = torch.autograd.grad((weight * gradient).sum(), variables)
        return float(value) / energy, found.cpu().numpy()

    # torch's own optimizer imports torch's compiler, which takes seconds.
    limits = {"maxiter": ITERATIONS, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-9}
    first = start.cpu().numpy()
    before, _ = evaluate(first)
    if before > _MUCH and _in_range(metric.inputs):
        inputs = metric.inputs.single()
    done = minimize(evaluate, first, jac=True, method="L-BFGS-B", options=limits)
    inputs = metric.inputs
    # An error below zero is one of moments that do not belong together, by rounding.
    if not 0 <= evaluate(done.x)[0] <= before:
        return factors
    found = zip(stored(torch.tensor(done.x, device=start.device)), factors.stored, strict=True)
    return factors.holding([new.to(old.dtype) for new, old in found])


def _in_range(inputs: SecondMoment) -> bool:
    """Whether float32 holds the second moment."""
    return 1e-25 < float(inputs.diagonal.max()) < 1e25


def _is_product_of_matrices(factors: Factors) -> bool:
    """Whether a matrix of all inputs is followed by one without kernel, and nothing else."""
    if len(factors.tensors) != 2 or factors.sparse is not None or set(factors.groups) != {1}:
        return False
    return prod(factors.tensors[1].shape[2:]) == 1
