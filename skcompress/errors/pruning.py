"""Pruning that cannot be done as asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .base import SkcompressError


class CriterionValueError(SkcompressError, ValueError):
    """A parameter of a criterion that has no meaning."""

    def __init__(self, owner: str, parameter: str, rule: str, received: object):
        super().__init__(f"{parameter} of {owner} must be {rule}; got {received!r}")


class AllocationValueError(SkcompressError, ValueError):
    """A parameter of an allocation that has no meaning."""

    def __init__(self, owner: str, parameter: str, rule: str, received: object):
        super().__init__(f"{parameter} of {owner} must be {rule}; got {received!r}")


class AllocationKindError(SkcompressError, TypeError):
    """An allocation of ranks where one of zeros is needed, or the other way round."""

    def __init__(self, owner: str, received: object, wanted: str, known: Sequence[str]):
        listed = ", ".join(map(repr, known))
        super().__init__(
            f"allocation of {owner} must be one that divides {wanted}; got {received!r}, which "
            f"does not. Known: {listed}"
        )


class CriterionScoreError(SkcompressError, ValueError):
    """Scores of a criterion that nothing can be chosen by."""

    def __init__(self, layer: str, criterion: str, what: str):
        super().__init__(
            f"{criterion} gives the weight of layer {layer!r} {what}: check the criterion and the "
            f"data, or leave the layer out with exclude=[{layer!r}]"
        )


class MinKeptError(SkcompressError, ValueError):
    """More values that are to stay in each weight than the sparsity leaves."""

    def __init__(self, owner: str, min_kept: object, sparsity: float, least: int, total: int):
        most = math.floor((1 - least / total) * 1e4) / 1e4
        super().__init__(
            f"min_kept={min_kept!r} of {owner} keeps {least:,} of {total:,} values, more than "
            f"sparsity={sparsity:g} leaves: lower min_kept, or ask for sparsity <= {most:g}"
        )


class HeldWeightError(SkcompressError, ValueError):
    """Zeros that are to be held in a weight that is computed from other parameters."""

    def __init__(self, layer: str):
        super().__init__(
            f"the weight of layer {layer!r} is computed from other parameters, so that no zeros "
            "can be held in it while they are trained: leave it out with "
            f"exclude=[{layer!r}], or remove the parametrization first"
        )


class HookedOptimizerError(SkcompressError, TypeError):
    """An optimizer that cannot be told to keep zeros."""

    def __init__(self, owner: str, received: object):
        super().__init__(
            f"optimizer of {owner}.partial must be a torch.optim.Optimizer, whose steps can be "
            f"hooked into; got {type(received).__name__}: pass the optimizer inside of it, or None "
            "and call hold() of the schedule after each step"
        )


class ScheduleError(SkcompressError, RuntimeError):
    """A step more than a schedule has."""

    def __init__(self, n_steps: int):
        super().__init__(
            f"all {n_steps} steps of the schedule are done: call finalize(), or make a schedule "
            "with a larger n_steps"
        )
