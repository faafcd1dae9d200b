"""Whether a model is still what it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Record values, mode, hooks and identities of a model, for `check_untouched`."""
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "modules": [(n, id(m), m.training) for n, m in model.named_modules()],
        "parameters": [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        "hooks": [
            len(hooks)
            for m in model.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        ],
    }


def check_untouched(where: str, model: nn.Module, before: dict[str, Any]) -> None:
    """Compare a model with what `snapshot` gave; `where` starts the error message."""
    after = snapshot(model)
    for part in ("modules", "parameters", "hooks"):
        assert before[part] == after[part], f"{where}: {part} of the input model changed"
    _same_tensors(where, before["state"], after["state"])


def _same_tensors(where: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert list(before) == list(after), f"{where}: the input model's state has other keys"
    changed: Sequence[str] = [
        k for k in before if not torch.equal(before[k].nan_to_num(), after[k].nan_to_num())
    ]
    assert not changed, f"{where}: the input model's {changed[0]} changed"
