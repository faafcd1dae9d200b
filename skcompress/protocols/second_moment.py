"""Second moments of inputs, A = E[x x^T], as what is computed with them.

With more samples than inputs A is a matrix (n, n). With fewer it is known by the samples alone,
A = F F^T + s I with F (n, N), and everything is a product with F: n N numbers instead of n^2, and
n N^2 steps instead of n^3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..linalg import cholesky


class SecondMoment(ABC):
    """A of shape (n, n), symmetric, positive definite where it is divided by.

    `rows` is a float64 Tensor of shape (m, n) everywhere.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Give n."""

    @property
    @abstractmethod
    def dense(self) -> Tensor:
        """A itself, (n, n) in float64."""

    @property
    @abstractmethod
    def diagonal(self) -> Tensor:
        """Diagonal (n,) of A."""

    @abstractmethod
    def times(self, rows: Tensor) -> Tensor:
        """Give rows A."""

    @abstractmethod
    def solve(self, rows: Tensor) -> Tensor:
        """Give rows A^-1."""

    @abstractmethod
    def whiten(self, rows: Tensor) -> Tensor:
        """Give rows L, for some L with L L^T = A: the norm of the outputs that `rows` give."""

    @abstractmethod
    def unwhiten(self, rows: Tensor) -> Tensor:
        """Give rows L^-1."""

    @abstractmethod
    def plus(self, size: float) -> SecondMoment:
        """Give A + size I."""

    @abstractmethod
    def plus_square(self, mean: Tensor) -> SecondMoment:
        """Give A + mean mean^T."""

    @abstractmethod
    def of(self, inputs: Tensor) -> SecondMoment:
        """Give the moment of some of the inputs, or of all in another order.

        inputs : int64 or bool Tensor, as an index of an axis
        """

    @abstractmethod
    def to(self, device: torch.device) -> SecondMoment:
        """Move it."""

    @abstractmethod
    def single(self) -> SecondMoment:
        """Give it in float32, for products alone, with `rows` in float32 too."""

    @abstractmethod
    def mean_of_blocks(self, n_blocks: int) -> SecondMoment:
        """Mean of the diagonal blocks, of which there are so many, one after another."""

    @abstractmethod
    def read_by(self, rows: Tensor, n_blocks: int) -> Tensor:
        """Second moment of what rows (r, n / n_blocks) give on each of the blocks of inputs.

        (r * n_blocks, r * n_blocks): every block of the first row, then of the second.
        """


@dataclass(frozen=True)
class Dense(SecondMoment):
    """A second moment that is a matrix, float64."""

    matrix: Tensor

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def dense(self) -> Tensor:
        return self.matrix

    @property
    def diagonal(self) -> Tensor:
        return self.matrix.diagonal()

    @cached_property
    def _root(self) -> Tensor:
        return cholesky(self.matrix)

    def times(self, rows: Tensor) -> Tensor:
        return rows @ self.matrix

    def solve(self, rows: Tensor) -> Tensor:
        return torch.cholesky_solve(rows.mT, self._root).mT

    def whiten(self, rows: Tensor) -> Tensor:
        return rows @ self._root

    def unwhiten(self, rows: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self._root, rows, upper=False, left=False)

    def plus(self, size: float) -> Dense:
        matrix = self.matrix.clone()
        matrix.diagonal().add_(size)
        return Dense(matrix)

    def plus_square(self, mean: Tensor) -> Dense:
        return Dense(torch.addr(self.matrix, mean, mean))

    def of(self, inputs: Tensor) -> Dense:
        return Dense(self.matrix[inputs][:, inputs])

    def to(self, device: torch.device) -> Dense:
        return Dense(self.matrix.to(device))

    def single(self) -> Dense:
        return Dense(self.matrix.to(torch.float32))

    def mean_of_blocks(self, n_blocks: int) -> Dense:
        if n_blocks == 1:
            return self
        size = len(self) // n_blocks
        blocks = self.matrix.reshape(n_blocks, size, n_blocks, size)
        return Dense(blocks.diagonal(dim1=0, dim2=2).mean(-1))

    def read_by(self, rows: Tensor, n_blocks: int) -> Tensor:
        blocks = self.matrix.reshape(n_blocks, rows.shape[1], n_blocks, rows.shape[1])
        found = torch.einsum("rc,kcld,sd->rksl", rows, blocks, rows)
        return found.reshape(len(rows) * n_blocks, -1)


@dataclass(frozen=True)
class Spanned(SecondMoment):
    """F F^T + ridge I, for a float64 factor F of shape (n, N); N = 0 for white inputs."""

    factor: Tensor
    ridge: float = 0.0

    def __len__(self) -> int:
        return len(self.factor)

    @property
    def dense(self) -> Tensor:
        matrix = self.factor @ self.factor.mT
        matrix.diagonal().add_(self.ridge)
        return matrix

    @property
    def diagonal(self) -> Tensor:
        return self.factor.square().sum(1) + self.ridge

    @cached_property
    def _directions(self) -> tuple[Tensor, Tensor]:
        """Orthonormal directions (n, k), and the eigenvalues (k,) of F F^T that belong to them."""
        basis, rest = torch.linalg.qr(self.factor)
        energies, turned = torch.linalg.eigh(rest @ rest.mT)
        return basis @ turned, energies.clamp(min=0)

    def _function(self, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Give rows f(A), for a function of its eigenvalues."""
        basis, energies = self._directions
        values = function(torch.cat([energies.new_zeros(1), energies]) + self.ridge)
        return rows * values[0] + ((rows @ basis) * (values[1:] - values[0])) @ basis.mT

    def times(self, rows: Tensor) -> Tensor:
        return torch.add((rows @ self.factor) @ self.factor.mT, rows, alpha=self.ridge)

    def solve(self, rows: Tensor) -> Tensor:
        return self._function(rows, torch.reciprocal)

    def whiten(self, rows: Tensor) -> Tensor:
        return self._function(rows, torch.sqrt)

    def unwhiten(self, rows: Tensor) -> Tensor:
        return self._function(rows, torch.rsqrt)

    def plus(self, size: float) -> Spanned:
        return Spanned(self.factor, self.ridge + size)

    def plus_square(self, mean: Tensor) -> Spanned:
        return Spanned(torch.cat([self.factor, mean[:, None]], dim=1), self.ridge)

    def of(self, inputs: Tensor) -> Spanned:
        return Spanned(self.factor[inputs], self.ridge)

    def to(self, device: torch.device) -> Spanned:
        return Spanned(self.factor.to(device), self.ridge)

    def single(self) -> Spanned:
        return Spanned(self.factor.to(torch.float32), self.ridge)

    def mean_of_blocks(self, n_blocks: int) -> SecondMoment:
        if n_blocks == 1:
            return self
        blocks = self.factor.unflatten(0, (n_blocks, -1)).transpose(0, 1).flatten(1)
        found = Spanned(blocks / n_blocks**0.5, self.ridge)
        return found if blocks.shape[1] < len(blocks) else Dense(found.dense)

    def read_by(self, rows: Tensor, n_blocks: int) -> Tensor:
        given = torch.einsum("rc,kcp->rkp", rows, self.factor.unflatten(0, (n_blocks, -1)))
        given = given.flatten(0, 1)
        found = given @ given.mT
        # Of white inputs, blocks have nothing in common.
        alone = found.reshape(len(rows), n_blocks, len(rows), n_blocks).diagonal(dim1=1, dim2=3)
        alone.add_((self.ridge * rows @ rows.mT)[:, :, None])
        return found
