"""A backward pass through a model in eval mode, and what it starts from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..network.batches import Batch
from ..network.observing import Reducer, noting
from .moments import piece_size
from .outputs import Form, checked_rows, form_of


class Differentiating(Reducer, ABC):
    """Reads what a network gives as rows of logits or values, which a subclass differentiates.

    likelihood : how the main output is read, see `outputs.form_of`
    """

    def __init__(self, likelihood: str = "auto"):
        self._likelihood = likelihood
        self._form: Form | None = None

    def attach(self, network: nn.Module) -> None:  # type: ignore[override]
        prepared(network)

    def after(self, batch: Batch, output: Any) -> None:  # type: ignore[override]
        with noting("differentiated", batch):
            self._form = self._form or form_of(output, batch, self._likelihood)
            self.differentiate(batch, checked_rows(self._form, output, batch), self._form)

    @abstractmethod
    def differentiate(self, batch: Batch, rows: Tensor, form: Form) -> None:
        """Take the derivatives, of rows (positions, size) with gradient."""


def prepared(copy: nn.Module) -> nn.Module:
    """Make an observed copy fit for a backward pass in eval mode."""
    for module in copy.modules():
        # Hooks of the user's own on gradients, which these are not.
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
        if isinstance(module, nn.RNNBase):
            # cuDNN has no backward pass of recurrent layers in eval mode.
            module.training, module.dropout = True, 0.0
        elif isinstance(module, nn.TransformerEncoder):
            # Chosen where no parameter is trained, and without a backward pass.
            module.enable_nested_tensor = module.use_nested_tensor = False  # type: ignore[assignment]
    return copy


def score(rows: Tensor, form: Form, draw: str, generator: torch.Generator) -> Tensor:
    """Random gradients of the log-likelihood at each row of outputs.

    Their second moment is the Fisher information of the output's distribution: the identity
    for values, diag(p) - p p^T for logits.
    """
    if form.axis is None:
        return torch.randn(rows.shape, generator=generator).to(rows)
    result = torch.empty_like(rows)
    n_rows = max(1, piece_size(rows.device) // rows.shape[1])
    for one, part in zip(rows.split(n_rows), result.split(n_rows), strict=True):
        p = one.double().softmax(-1)
        part.copy_(_by_label(p, generator) if draw == "labels" else _by_signs(p, generator))
    return result


def _by_label(p: Tensor, generator: torch.Generator) -> Tensor:
    # Numbers from the CPU's generator are the same on every device.
    uniform = torch.rand(len(p), 1, generator=generator, dtype=torch.float64).to(p.device)
    cumulated = p.cumsum(-1)
    last = cumulated[:, -1:]
    # Below the last value and to the right of equal ones: no class without probability.
    goal = (uniform * last).minimum(last.nextafter(torch.zeros_like(last)))
    label = torch.searchsorted(cumulated, goal, right=True)
    return (-p).scatter_add_(1, label, torch.ones_like(goal))


def _by_signs(p: Tensor, generator: torch.Generator) -> Tensor:
    """(diag(sqrt p) - p sqrt(p)^T) times random signs."""
    signs = torch.randint(2, p.shape, generator=generator, dtype=torch.int8).to(p.device)
    signed = p.sqrt() * (2 * signs - 1)
    return signed - p * signed.sum(-1, keepdim=True)
