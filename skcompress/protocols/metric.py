"""What "close" means for a weight, by its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .second_moment import Dense, SecondMoment, Spanned


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

    inputs : E[x x^T], positive definite where a decomposition is given the metric
    cross : float64 Tensor (out, n), E[y x^T]; W times the moment of the inputs where y = W x
    energy : float, E[|R y|^2]
    output : float64 Tensor R, (out,) for its diagonal or (out, out), invertible; None for 1
        Errors e of the outputs count as |R e|^2: what is done with them afterwards.
    """

    inputs: SecondMoment
    cross: Tensor
    energy: float
    output: Tensor | None = None

    @classmethod
    def of_inputs(
        cls, weight: Tensor, inputs: SecondMoment | Tensor, output: Tensor | None = None
    ) -> Metric:
        """Metric in which `weight` itself is the goal, for inputs with this second moment.

        inputs : as a matrix (n, n), float64, too
        """
        if isinstance(inputs, Tensor):
            inputs = Dense(inputs)
        matrix = weight.flatten(1).to(torch.float64)
        cross = inputs.times(matrix)
        metric = cls(inputs, cross, 0.0, output)
        return replace(metric, energy=float((metric.seen(cross) * metric.seen(matrix)).sum()))

    @classmethod
    def of_rows(cls, weight: Tensor, often: Tensor) -> Metric:
        """Metric in which row i of `weight`, as of an embedding, counts `often[i]` times."""
        nothing = torch.zeros(weight[0].numel(), 0, dtype=torch.float64, device=weight.device)
        root = often.to(nothing).sqrt()
        return cls.of_inputs(weight, Spanned(nothing, 1.0), root)

    @property
    def gram(self) -> Tensor:
        """Second moment of the inputs as a matrix (n, n)."""
        return self.inputs.dense

    def with_ridge(self, weight: Tensor, share: float = 1e-4, least: float = 0.0) -> Metric:
        """Add a little of what `weight` would give on white inputs.

        A regression then shrinks to the weight, not to zero, where inputs say little, and keeps
        it where they say nothing; their moment becomes positive definite.

        share : of the mean of the moment's diagonal, which is added to it. More of it where
            moments of few inputs have to be relied on.
        least : what rounding may have left on the diagonal where nothing should be
        """
        size = max(share * float(self.inputs.diagonal.mean()), least) or share
        matrix = weight.flatten(1).to(self.cross)
        return replace(
            self,
            inputs=self.inputs.plus(size),
            cross=self.cross + size * matrix,
            energy=self.energy + size * float(self.seen(matrix).square().sum()),
        )

    def less(self, weight: Tensor) -> Metric:
        """Metric of what is left to be given, y - weight x, once `weight` gives its part."""
        matrix = weight.flatten(1).to(self.cross)
        given = self.inputs.times(matrix)
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
