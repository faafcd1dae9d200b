"""What "close" means for a weight, by its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


def counted(root: Tensor | None, outputs: Tensor) -> Tensor:
    """Give R outputs, for outputs (out, any) and R (out, out) or its diagonal; None for 1."""
    if root is None:
        return outputs
    return root[:, None] * outputs if root.dim() == 1 else root @ outputs


@dataclass(frozen=True)
class Metric:
    """Second moments of what one weight is given and of what it is to give.

    A weight W (out, n) unfolded in the order of its memory, n = in * kernel, is to map
    inputs x (n,) to outputs y (out,). Means are taken off where a bias makes up for them.

    gram : float64 Tensor (n, n), E[x x^T]
    cross : float64 Tensor (out, n), E[y x^T]; W gram where y = W x
    energy : float, E[|R y|^2]
    output : float64 Tensor R, (out,) for its diagonal or (out, out), invertible; None for 1
        Errors e of the outputs count as |R e|^2: what is done with them afterwards.
    ridge : float > 0
        Share of the mean of gram's diagonal that is added to it, with as strong a pull to
        the weight: where inputs say little, the weight's own values are kept. More of it
        where moments of few inputs have to be relied on.
    noise : float >= 0
        What rounding may have left on gram's diagonal where nothing should be; the least that
        is added to it.
    """

    gram: Tensor
    cross: Tensor
    energy: float
    output: Tensor | None = None
    ridge: float = 1e-4
    noise: float = 0.0

    @classmethod
    def of_inputs(
        cls, weight: Tensor, gram: Tensor, output: Tensor | None = None, noise: float = 0.0
    ) -> Metric:
        """Metric in which `weight` itself is the goal, for inputs with this second moment."""
        matrix = weight.flatten(1).to(gram)
        cross = matrix @ gram
        metric = cls(gram, cross, 0.0, output, noise=noise)
        return replace(metric, energy=float((metric.seen(cross) * metric.seen(matrix)).sum()))

    def with_ridge(self, weight: Tensor) -> Metric:
        """Add a little of what `weight` would give on white inputs.

        A regression then shrinks to the weight, not to zero, where inputs say nothing; the gram
        becomes positive definite.
        """
        size = self.ridge * float(self.gram.diagonal().mean())
        size = max(size, self.noise) or self.ridge
        matrix = weight.flatten(1).to(self.gram)
        white = torch.eye(len(self.gram), dtype=matrix.dtype, device=matrix.device)
        return replace(
            self,
            gram=self.gram + size * white,
            cross=self.cross + size * matrix,
            energy=self.energy + size * float(self.seen(matrix).square().sum()),
        )

    def less(self, weight: Tensor) -> Metric:
        """Metric of what is left to be given, y - weight x, once `weight` gives its part."""
        matrix = weight.flatten(1).to(self.gram)
        given = matrix @ self.gram
        twice = self.seen(2 * self.cross - given)
        energy = self.energy - float((twice * self.seen(matrix)).sum())
        return replace(self, cross=self.cross - given, energy=energy)

    def seen(self, outputs: Tensor) -> Tensor:
        """Give R outputs, for outputs (out, any)."""
        return counted(self.output, outputs)

    def weighed(self, outputs: Tensor) -> Tensor:
        """Give R^T R outputs, for outputs (out, any)."""
        if self.output is None:
            return outputs
        if self.output.dim() == 1:
            return self.output.square()[:, None] * outputs
        return self.output.mT @ (self.output @ outputs)

    def unseen(self, outputs: Tensor) -> Tensor:
        """Give R^-1 outputs, for outputs (out, any)."""
        if self.output is None:
            return outputs
        if self.output.dim() == 1:
            return outputs / self.output[:, None]
        return torch.linalg.solve(self.output, outputs)
