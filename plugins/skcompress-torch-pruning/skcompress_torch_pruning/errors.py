"""Exceptions that write their own messages."""

from __future__ import annotations

from math import floor

from skcompress.errors import SkcompressError


class UntraceableError(SkcompressError, ValueError):
    """A model of which no dependency graph can be made."""

    def __init__(self, owner: str, why: str):
        super().__init__(
            f"{owner} cannot tell which layers of the model depend on each other: {why}. The graph "
            "is read off one forward by torch-pruning, through autograd: it needs a forward "
            "without torch.no_grad, numpy or compiled parts inside"
        )


class RatioError(SkcompressError, ValueError):
    """A ratio that no choice of channels can reach.

    `largest` is the largest share that can be removed.
    """

    def __init__(self, ratio: float, largest: float, unit: str):
        self.largest = floor(largest * 1e4) / 1e4
        super().__init__(
            f"ratio={ratio:g} cannot be reached: with min_kept, round_to, layers and exclude as "
            f"they are, {self.largest:g} of the model's {unit} can be removed at most. Ask for "
            f"ratio <= {self.largest:g}, or look at the notes in the report of a smaller ratio"
        )


class NonFiniteScoreError(SkcompressError, ValueError):
    """NaN or infinity among the importances of channels."""

    def __init__(self, criterion: str, layer: str, n_bad: int, n: int):
        super().__init__(
            f"criterion {criterion!r} gives {n_bad} of {n} channels of layer {layer!r} a NaN or "
            "infinite importance: look at the values that this layer gives on the data, or leave "
            f"it out with exclude=[{layer!r}]"
        )


class LabelError(SkcompressError, ValueError):
    """Labels that are needed, or that do not fit."""

    def __init__(self, owner: str, why: str):
        super().__init__(
            f"{owner}: {why}. Labels are the second item of a batch that is a tuple or list, "
            "(inputs, labels), or the item 'labels' of one that is a dict"
        )


class NoInputsError(SkcompressError, ValueError):
    """No data, without which no forward can be looked at."""

    def __init__(self, owner: str):
        super().__init__(
            f"{owner} reads off a forward which channels depend on each other: pass inputs as the "
            "second argument, fit(model, data). One batch will do for criteria that look at "
            "weights alone; 'merge', 'taylor', 'lrp' and refit want a few hundred inputs"
        )
