"""How good against how small: what the trials of a search came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils._param_validation import InvalidParameterError, validate_params
from sklearn.utils.validation import check_is_fitted

from ..protocols import Objective
from .panels import COLOURS, GREY, make_panels, require_matplotlib


@dataclass(frozen=True)
class ParetoPoints:
    """Trials of a search, as arrays.

    values : name of a quantity -> float array (trials,)
    quantities : name -> what was measured, and how it is to be shown
    feasible, front : bool arrays (trials,), which meet the constraints, and which of these no
        other one beats
    chosen : index of the one that was refitted
    dense : name of a quantity -> value of the uncompressed model
    objectives : names of what was searched for
    bounds : (name of a quantity, bound, as it was written) of each constraint
    """

    values: Mapping[str, np.ndarray]
    quantities: Mapping[str, Objective]
    feasible: np.ndarray
    front: np.ndarray
    chosen: int
    dense: Mapping[str, float]
    objectives: Sequence[str] = ()
    bounds: Sequence[tuple[str, float, str]] = ()


class ParetoDisplay:
    """The trials of a search over two quantities, with the front of the best compromises.

    Make one with `from_search`.

    Parameters
    ----------
    points : ParetoPoints

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    front_ : matplotlib Line2D of the front

    Examples
    --------
    >>> from torch import nn
    >>> from skcompress import CompressionSearch, SVDCompressor
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> inputs = torch.randn(100, 64)
    >>> def closeness(small):
    ...     return -(small(inputs) - model(inputs)).square().mean().item()
    >>> search = CompressionSearch(SVDCompressor(), "rank", scoring=closeness, n_trials=5,
    ...                            random_state=0).fit(model)
    >>> display = ParetoDisplay.from_search(search)
    >>> display.points.values["score"].shape
    (5,)
    """

    def __init__(self, *, points: ParetoPoints):
        self.points = points

    @classmethod
    def from_search(cls, search: Any, *, ax: Any = None, **kwargs: Any) -> ParetoDisplay:
        """Collect the trials of a fitted `CompressionSearch`, and draw them.

        ax, kwargs : as in `plot`
        """
        require_matplotlib(f"{cls.__name__}.from_search")
        check_is_fitted(search, "pareto_front_")
        return cls(points=points_of(search)).plot(ax, **kwargs)

    @validate_params(
        {
            "x": [None, str],
            "y": [None, str],
            "relative": ["boolean"],
            "line_kw": [dict, None],
        },
        prefer_skip_nested_validation=False,
    )
    def plot(
        self,
        ax: Any = None,
        *,
        x: str | None = None,
        y: str | None = None,
        relative: bool = True,
        line_kw: dict[str, Any] | None = None,
    ) -> ParetoDisplay:
        """Draw trials as dots, and the front as a line where its two axes are all objectives.

        ax : None for a new figure, or an Axes
        x, y : quantities that the search measured; None for what it was about
        relative : draw counts as per cent of the uncompressed model's
        line_kw : keywords for `Axes.plot`, for the front
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        x, y = self._axes(x, y)
        self.ax_ = make_panels(type(self).__name__, ax, 1, (6.0, 4.2)).axes[0]
        self.figure_ = self.ax_.figure
        units = {name: self._unit(name, relative) for name in (x, y)}
        points = self.points
        across, up = points.values[x] * units[x], points.values[y] * units[y]
        self._dots(across, up)
        both = set(points.objectives) <= {x, y}
        order = np.flatnonzero(points.front)
        order = order[np.argsort(across[order], kind="stable")]
        style: dict[str, Any] = {
            "color": COLOURS[0], "marker": "o", "markersize": 5, "linewidth": 1.4,
            "linestyle": "-" if both else "", "label": "best compromises", "zorder": 3,
            # Between two of them nothing better is known than the one that is worse in y.
            "drawstyle": "steps-post" if y == "score" and x != "score" else "default",
        }  # fmt: skip
        (self.front_,) = self.ax_.plot(across[order], up[order], **(style | (line_kw or {})))
        ring = {"facecolors": "none", "edgecolors": COLOURS[1], "linewidths": 1.8, "zorder": 4}
        chosen = points.chosen
        self.ax_.scatter(across[chosen], up[chosen], s=110, label="chosen", **ring)
        dense = points.dense[x] * units[x], points.dense[y] * units[y]
        self.ax_.scatter(*dense, marker="*", s=110, color="black", label="uncompressed", zorder=4)
        self._bounds(x, y, units)
        for name, axis in ((x, self.ax_.xaxis), (y, self.ax_.yaxis)):
            quantity = points.quantities[name]
            share = f", % of {points.dense[name]:,.0f}" if relative and quantity.counted else ""
            axis.set_label_text(quantity.heading(name) + share)
        self.ax_.grid(color="0.92", linewidth=0.6)
        self.ax_.set_axisbelow(True)
        above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 3, "frameon": False}
        self.ax_.legend(fontsize="small", **above)
        return self

    def _axes(self, x: str | None, y: str | None) -> tuple[str, str]:
        about = [*self.points.objectives, *(name for name, _, _ in self.points.bounds)]
        if len(set(about)) < 2:
            about += self.points.values
        about = [name for name in dict.fromkeys(about) if name in self.points.values]
        # The score upwards, if there is one.
        y = y or ("score" if "score" in about and x != "score" else None)
        y = y or next(name for name in about if name != x)
        x = x or next(name for name in about if name != y)
        for axis, name in (("x", x), ("y", y)):
            if name not in self.points.values:
                known = ", ".join(self.points.values)
                raise InvalidParameterError(
                    f"The {axis!r} parameter of {type(self).__name__} must be something that the "
                    f"search measured, {known}. Got {name!r} instead."
                )
        return x, y

    def _unit(self, name: str, relative: bool) -> float:
        quantity = self.points.quantities[name]
        return 100 / self.points.dense[name] if relative and quantity.counted else quantity.scale

    def _dots(self, x: np.ndarray, y: np.ndarray) -> None:
        feasible = self.points.feasible
        self.ax_.scatter(x[feasible], y[feasible], s=14, color="0.7", linewidths=0, label="trials")
        if not feasible.all():
            style = {"marker": "x", "s": 18, "color": "0.7", "linewidths": 0.9}
            self.ax_.scatter(x[~feasible], y[~feasible], label="constraints not met", **style)

    def _bounds(self, x: str, y: str, units: Mapping[str, float]) -> None:
        style = {"color": GREY, "linestyle": "--", "linewidth": 0.9, "zorder": 1}
        for name, bound, text in self.points.bounds:
            if name == x:
                self.ax_.axvline(bound * units[x], label=text, **style)
            elif name == y:
                self.ax_.axhline(bound * units[y], label=text, **style)


def points_of(search: Any) -> ParetoPoints:
    """Take from a fitted search what is drawn: of what was measured of every trial."""
    rows, dense = list(search.trials_), search.dense_
    quantities = search.trials_.objectives
    found = {name: [getattr(row.found, name) for row in rows] for name in quantities}
    values = {
        name: np.array(column, dtype=float)
        for name, column in found.items()
        if all(value is not None for value in (*column, getattr(dense, name)))
    }
    front = {row.number for row in search.pareto_front_}
    numbers = [row.number for row in rows]
    return ParetoPoints(
        values=values,
        quantities={name: quantities[name] for name in values},
        feasible=np.array([row.feasible for row in rows]),
        front=np.array([number in front for number in numbers]),
        chosen=numbers.index(search.best_trial_.number),
        dense={name: float(getattr(dense, name)) for name in values},
        objectives=search.objectives_,
        bounds=[
            (constraint.name, constraint.bound(getattr(dense, constraint.name)), constraint.text)
            for constraint in search.constraints_
        ],
    )
