"""Channels ranked by weights alone: torch-pruning's importances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch_pruning.dependency import Group as TiedGroup

Importance = Callable[[Any], Any]


def importance(criterion: str) -> Importance:
    """Give torch-pruning's importance by our name for it.

    "l1", "l2": sums of absolute or squared weights of all layers that give or read a channel,
    their mean over layers, relative to the mean over the group (Li et al. 2017, arXiv 1608.08710;
    Fang et al. 2023, arXiv 2301.12900). "batch_norm": the scales of batch normalisations
    (Liu et al. 2017, arXiv 1708.06519), relative to the mean over the group.
    """
    if criterion == "batch_norm":
        return tp.importance.BNScaleImportance()  # type: ignore[no-any-return]
    return tp.importance.GroupMagnitudeImportance(  # type: ignore[no-any-return]
        p=int(criterion[1]), target_types=[_ConvNd, nn.Linear]
    )


def channel_scores(importance: Importance, group: TiedGroup) -> Tensor | None:
    """Importance of each channel, float64 (channels,); None where there is nothing to go by."""
    with torch.no_grad():
        found = importance(group)
    if not isinstance(found, Tensor) or found.numel() == 0:
        return None
    return found.detach().double().cpu().flatten()
