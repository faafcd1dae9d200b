"""Penalties that cannot be applied."""

from __future__ import annotations

from .base import SkcompressError


class RegularizerValueError(SkcompressError, ValueError):
    """A parameter of a regularizer that has no meaning."""

    def __init__(self, owner: str, parameter: str, rule: str, received: object):
        super().__init__(f"{parameter} of {owner} must be {rule}; got {received!r}")


class ProximalError(SkcompressError, ValueError):
    """A proximal step of a penalty that has none in closed form."""

    def __init__(self, owner: str):
        super().__init__(
            f"{owner} has no proximal operator in closed form: use add_grad_ instead, before "
            "optimizer.step()"
        )


class ComputedWeightError(SkcompressError, ValueError):
    """A proximal step on a weight that is computed from other parameters."""

    def __init__(self, owner: str, layer: str):
        super().__init__(
            f"the weight of layer {layer!r} is computed from other parameters, so that a "
            f"proximal step cannot be stored: use {owner}.add_grad_, which differentiates "
            f"through it, or leave it out with exclude=[{layer!r}]"
        )
