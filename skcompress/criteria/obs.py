"""Optimal brain surgeon: what a number costs once the others of its row have made up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CriterionValueError
from ..linalg import cholesky
from ..protocols import DataCriterion, Evidence
from ..supported import supported_least_squares

# Columns between two products with all the columns that come after.
_BLOCK = 128


def surgeon_scores(matrix: Tensor, inverse: Tensor) -> Tensor:
    """w_j^2 / [H^-1]_jj of a matrix (out, n), for the inverse of its Hessian (n, n)."""
    return matrix.square() / inverse.diagonal()


def swept(matrix: Tensor, inverse: Tensor, kept: Tensor) -> Tensor:
    """Set columns to zero from left to right, each made up for by those to its right.

    matrix : (out, n); inverse : of the Hessian (n, n), which all rows share; kept : bool (out, n)

    One triangular factor for all rows, O(n^3 + out n^2), where exact least squares solves as many
    systems as there are rows; what was left of a column is not touched again, so it loses more.
    """
    root = cholesky(inverse).mT  # upper: H^-1 = U^T U
    result = matrix.clone()
    for start in range(0, len(root), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(root)))
        rest = slice(block.stop, None)
        errors = torch.zeros_like(result[:, block])
        for j in range(block.start, block.stop):
            lost = torch.where(kept[:, j], 0, result[:, j]) / root[j, j]
            result[:, j : block.stop] -= lost[:, None] * root[j, j : block.stop]
            errors[:, j - start] = lost
        result[:, rest] -= errors @ root[block, rest]
    return result * kept


class OBS(DataCriterion):
    """w_j^2 / [H^-1]_jj, H = E[x x^T]: the error of the outputs after the best correction.

    What stays changes as well, to give what the weight gave, from the same inputs.

    damping : float > 0, share of the mean of H's diagonal that is added to it
    update : "exact", least squares on what stays, one system for each row, of the size of its
        support; or "sweep", SparseGPT's, one factorisation for all rows, for layers of many
        thousands of inputs

    References: Hassibi & Stork 1993; Frantar & Alistarh 2022, arXiv 2208.11580 (OBC), and 2023,
    arXiv 2301.00774 (SparseGPT).

    >>> import torch
    >>> seen = Evidence(gram=torch.tensor([[1.0, 0.99], [0.99, 1.0]], dtype=torch.float64))
    >>> OBS().updated(torch.ones(1, 2), seen, torch.tensor([[True, False]]))
    tensor([[1.9802, 0.0000]])
    """

    needs = ("gram",)

    def __init__(self, damping: float = 1e-2, update: str = "exact"):
        self.damping = damping
        self.update = update

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        if not self.damping > 0:
            raise CriterionValueError("OBS", "damping", "> 0", self.damping)
        if self.update not in ("exact", "sweep"):
            raise CriterionValueError("OBS", "update", "'exact' or 'sweep'", self.update)
        if evidence.gram is None:  # rows of an embedding do not make up for each other
            return weight.square() * evidence.input_power(weight)
        inverse = torch.cholesky_inverse(cholesky(self._hessian(evidence.gram)))
        scores = surgeon_scores(weight.flatten(1).to(inverse), inverse)
        return scores.to(weight.dtype).reshape(weight.shape)

    def updated(self, weight: Tensor, evidence: Evidence, kept: Tensor) -> Tensor:
        if evidence.gram is None:
            return weight * kept
        hessian = self._hessian(evidence.gram)
        matrix, support = weight.flatten(1).to(hessian), kept.flatten(1)
        if self.update == "exact":
            found = supported_least_squares(hessian, matrix @ hessian, support).values
        else:
            found = swept(matrix, torch.cholesky_inverse(cholesky(hessian)), support)
        return found.to(weight.dtype).reshape(weight.shape)

    def _hessian(self, gram: Tensor) -> Tensor:
        size = self.damping * (float(gram.diagonal().mean()) or 1.0)
        return gram + size * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
