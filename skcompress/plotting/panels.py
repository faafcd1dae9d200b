"""A grid of panels with a key above, in a new figure or in place of the user's axes."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

# Okabe & Ito's colours, which colour-blind readers can tell apart, the darkest first; line
# styles and markers repeat the distinction for print without colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "0.45"
SHADE = "0.92"

_MOST_COLUMNS = 5
# Inches: a panel's width without which its labels overlap, and what a line of the key takes.
_LEAST_WIDTH = 1.4
_KEY_LINE = 0.24


class Panels(NamedTuple):
    """Axes to draw into.

    axes : object array of shape (n,)
    left, bottom : bool arrays of shape (n,), whether nothing is beside or below that could
        carry the labels of the axis
    key : empty Axes above the grid for the legend; None where there is no grid
    n_columns : of the grid
    """

    axes: np.ndarray
    left: np.ndarray
    bottom: np.ndarray
    key: Axes | None = None
    n_columns: int = 1


def require_matplotlib(caller: str) -> None:
    """Refuse to go on without matplotlib, before anything expensive is computed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise ImportError(
            f"{caller} needs matplotlib, which is not installed: pip install 'skcompress[plot]'"
        ) from cause


def best_columns(n_panels: int, most: int) -> int:
    """Columns, at most so many, that leave the fewest cells of a grid empty.

    >>> best_columns(3, most=5), best_columns(8, most=5), best_columns(20, most=5)
    (3, 4, 5)
    """
    if n_panels <= most:
        return n_panels
    candidates = range(max(min(2, most), most - 2), most + 1)
    return min(candidates, key=lambda columns: (-n_panels % columns, -columns))


def make_panels(
    owner: str, ax: Any, n_panels: int, panel_size: tuple[float, float], n_entries: int = 0
) -> Panels:
    """Give one Axes per panel.

    ax : None for a new pyplot figure; an Axes, which is drawn into if it is to hold one
        panel and else gives its place to a grid; or n_panels Axes in any arrangement
    panel_size : inches (width, height) of a panel of a new figure
    n_entries : of the key that has room above a grid, with its title
    """
    from matplotlib.axes import Axes

    if ax is None:
        import matplotlib.pyplot as plt

        n_columns = best_columns(n_panels, _MOST_COLUMNS)
        height = panel_size[1] * ceil(n_panels / n_columns)
        if n_panels > 1:
            height += key_height(n_entries, n_columns)
        _, ax = plt.subplots(figsize=(panel_size[0] * n_columns, height), layout="constrained")
    # How given axes are arranged is not known, so each of them carries all of its labels.
    everywhere = np.ones(n_panels, dtype=bool)
    if not isinstance(ax, Axes):
        return Panels(_checked(owner, ax, n_panels), everywhere, everywhere)
    if n_panels == 1:
        return Panels(np.array([ax], dtype=object), everywhere, everywhere)
    return _divided(owner, ax, n_panels, n_entries)


def _divided(owner: str, ax: Axes, n_panels: int, n_entries: int) -> Panels:
    """Put a grid, with as many columns as have room, in the place of `ax`."""
    spec = ax.get_subplotspec()
    if spec is None or not ax.axison:
        reason = "switched off, as by an earlier plot" if spec else "not part of a grid"
        raise ValueError(
            f"ax of {owner} cannot be divided into {n_panels} panels, for it is {reason}: pass an "
            f"Axes as plt.subplots() gives it, or a list of {n_panels} of them"
        )
    ax.set_axis_off()
    figure: Any = ax.figure
    width, height = ax.get_window_extent().size / figure.dpi
    n_columns = best_columns(n_panels, min(_MOST_COLUMNS, max(1, int(width / _LEAST_WIDTH))))
    n_rows = ceil(n_panels / n_columns)
    heights = [key_height(n_entries, n_columns) * n_rows / height] + [1] * n_rows
    # A layout engine finds the distances by itself, and takes those given as orders.
    distances = {} if figure.get_layout_engine() else {"hspace": 0.9, "wspace": 0.15}
    cells = spec.subgridspec(n_rows + 1, n_columns, height_ratios=heights, **distances)
    key = figure.add_subplot(cells[0, :])
    key.set_axis_off()
    place = np.arange(n_panels)
    axes = np.empty(n_panels, dtype=object)
    for i in place:
        axes[i] = figure.add_subplot(cells[1 + i // n_columns, i % n_columns])
    return Panels(axes, place % n_columns == 0, place + n_columns >= n_panels, key, n_columns)


def key_height(n_entries: int, n_columns: int) -> float:
    """Inches that a key with a title takes."""
    return _KEY_LINE * (1 + ceil(n_entries / n_columns))


def _checked(owner: str, ax: Any, n_panels: int) -> np.ndarray:
    from matplotlib.axes import Axes

    given = np.asarray(ax, dtype=object).ravel()
    wrong = [type(item).__name__ for item in given if not isinstance(item, Axes)]
    if wrong or len(given) != n_panels:
        received = f"an object of type {wrong[0]}" if wrong else f"{len(given)} of them"
        raise ValueError(
            f"ax of {owner} must be None, an Axes, or {n_panels} of them, one for each panel; "
            f"got {received}"
        )
    return given


def draw_key(panels: Panels, handles: Sequence[Artist], title: str = "") -> None:
    """Draw the legend above the grid, or into the first panel where there is no grid."""
    style: dict[str, Any] = {"title": title, "title_fontsize": "small", "fontsize": "small"}
    axes = panels.axes[0]
    if panels.key is not None:
        axes = panels.key
        style |= {"ncols": min(len(handles), panels.n_columns), "loc": "center", "frameon": False}
    axes.legend(handles=handles, **style)


def shorten(name: str, width: int) -> str:
    """Keep the end of a long layer name: its beginning is what layers have in common.

    >>> shorten("encoder.layers.0.linear1", 10)
    '….linear1'
    """
    if len(name) <= width:
        return name
    end = name[-(width - 1) :]
    return "…" + (end[end.index(".") :] if "." in end else end)
