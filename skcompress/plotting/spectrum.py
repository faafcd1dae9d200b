"""How fast the singular values of each layer fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from torch import Tensor, nn

from ..linalg import leading_subspace
from ..network.weights import Patterns
from ..protocols import Spectrum
from ..unfolding import SCHEMES, unfold
from .energies import lost_energy, pooled_values, rank_keeping, stored_share, total_share
from .matching import finite_weight, matching_sites
from .panels import (
    COLOURS,
    GREY,
    LINES,
    MARKERS,
    SHADE,
    draw_key,
    make_panels,
    require_matplotlib,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# How many layers are drawn where the user does not say.
_MOST = {"values": 20, "energy": 20, "parameters": 60}
_DOT: dict[str, Any] = {"marker": "o", "markersize": 4, "linestyle": ""}
_TITLES = {
    "values": "singular values relative to the largest",
    "energy": "share of the squared norm that truncation keeps",
}
# Singular values below this share of the largest one are off the picture: together they
# hold nothing that matters, and they would squeeze what does.
_FLOOR = 1e-4


def singular_values(weight: Tensor, scheme: str) -> Spectrum:
    """Spectrum of a weight (groups, out, in, *kernel), each group for itself."""
    values = torch.stack([leading_subspace(unfold(group, scheme)).values for group in weight])
    rows, columns = unfold(weight[0], scheme).shape
    return Spectrum((values[0] if len(values) == 1 else values).cpu().numpy(), (rows, columns))


class SpectrumDisplay:
    """Singular values of the layers of one model, or of several of one architecture.

    Answers whether, and where, weights are close to low rank: of a layer whose values fall
    fast, few have to be kept. Make one with `from_model` or `from_models`.

    Parameters
    ----------
    spectra : dict of model label -> dict of layer name -> `skcompress.protocols.Spectrum`
        The same layers for every model.

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : array of matplotlib Axes, one for each panel
    lines_ : object array of matplotlib Line2D, (layers drawn, models); of one row, markers
        alone, for ``kind="parameters"``

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    >>> display = SpectrumDisplay.from_model(model)
    >>> display.spectra["model"]["2"].values.shape
    (10,)
    >>> display.plot(kind="energy").axes_.shape
    (2,)
    """

    def __init__(self, *, spectra: Mapping[str, Mapping[str, Spectrum]]):
        self.spectra = spectra

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        layers: Patterns = None,
        exclude: Patterns = (),
        scheme: str = "output",
        ax: Any = None,
        **kwargs: Any,
    ) -> SpectrumDisplay:
        """Compute the singular values of a model's layers and draw them.

        layers, exclude : names, glob patterns or module types: what to keep to, what to
            leave out
        scheme : {"output", "input", "spatial"}, the matrix that a convolution is unfolded
            to; layers without two kernel axes take "output" for "spatial"
        ax, kwargs : as in `plot`
        """
        return cls.from_models(
            {"model": model}, layers=layers, exclude=exclude, scheme=scheme, ax=ax, **kwargs
        )

    @classmethod
    @validate_params({"scheme": [StrOptions(set(SCHEMES))]}, prefer_skip_nested_validation=False)
    @torch.no_grad()
    def from_models(
        cls,
        models: Mapping[str, nn.Module],
        *,
        layers: Patterns = None,
        exclude: Patterns = (),
        scheme: str = "output",
        ax: Any = None,
        **kwargs: Any,
    ) -> SpectrumDisplay:
        """Compare models of one architecture, layer by layer: one line for each of them.

        models : dict of label -> model
        layers, exclude, scheme, ax, kwargs : as in `from_model`
        """
        require_matplotlib(f"{cls.__name__}.from_models")
        sites = matching_sites(cls.__name__, models, layers, exclude)
        spectra = {
            str(label): {site.name: singular_values(finite_weight(site), scheme) for site in own}
            for label, own in sites.items()
        }
        return cls(spectra=spectra).plot(ax, **kwargs)

    @validate_params(
        {
            "kind": [StrOptions(set(_MOST))],
            "energy": [Interval(Real, 0, 1, closed="right")],
            "max_layers": [Interval(Integral, 1, None, closed="left"), None],
            "line_kw": [dict, None],
        },
        prefer_skip_nested_validation=False,
    )
    def plot(
        self,
        ax: Any = None,
        *,
        kind: str = "values",
        energy: float = 0.99,
        max_layers: int | None = None,
        line_kw: dict[str, Any] | None = None,
    ) -> SpectrumDisplay:
        """Draw the spectra.

        ax : None for a new figure; an Axes, which gives its place to a panel per layer; or
            an Axes for each panel
        kind : what to draw
            ``"values"``: a panel per layer, singular values relative to the largest, over
            the rank relative to full rank; an all-zero weight has no line.
            ``"energy"``: a panel per layer, the share of the squared norm that truncation
            to that rank keeps.
            ``"parameters"``: one panel with a row per layer, the share of its parameters
            that `energy` takes.
            Of grouped layers, root mean squares over the groups, which all get one rank.
        energy : share of the squared norm, in (0, 1]; in the panels, a dot marks its rank
        max_layers : how many layers to draw, evenly spaced from first to last; None for 20
            panels or 60 rows
        line_kw : keywords for `Axes.plot`, for all lines
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        names = list(next(iter(self.spectra.values())))
        shown = evenly(names, max_layers or _MOST[kind])
        note = f"{len(shown)} of {len(names)} layers" if len(shown) < len(names) else ""
        if kind == "parameters":
            self._plot_parameters(ax, shown, energy, note, line_kw or {})
        else:
            self._plot_panels(ax, shown, kind, energy, note, line_kw or {})
        self.figure_ = self.axes_[0].figure
        return self

    def _plot_panels(
        self, ax: Any, names: list[str], kind: str, energy: float, note: str, line_kw: dict
    ) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        labels = list(self.spectra) if len(self.spectra) > 1 else []
        size = (5.0, 3.6) if len(names) == 1 else (2.9, 2.1) if len(names) < 4 else (2.15, 1.7)
        panels = make_panels(type(self).__name__, ax, len(names), size, len(labels) + 2)
        self.axes_ = panels.axes
        self.lines_ = np.empty((len(names), len(self.spectra)), dtype=object)
        for name, axes, lines in zip(names, panels.axes, self.lines_, strict=True):
            spectra = [own[name] for own in self.spectra.values()]
            lines[:] = _draw_layer(axes, spectra, kind, energy, line_kw)
            rows, columns = spectra[0].shape
            axes.set_title(f"{shorten(name, 28)}\n{rows} x {columns}", fontsize="small")
        drawn = np.concatenate([line.get_ydata() for line in self.lines_.flat])
        lowest = drawn[drawn > 0].min(initial=1.0)
        for axes, left, bottom in zip(panels.axes, panels.left, panels.bottom, strict=True):
            _frame(axes, kind, lowest, left, bottom)
        handles: list[Any] = [
            Line2D([], [], color=line.get_color(), linestyle=line.get_linestyle(), label=label)
            for label, line in zip(labels, self.lines_[0], strict=False)
        ]
        kept = f"{100 * energy:.4g} % of the energy"
        handles.append(Line2D([], [], label=kept, color=GREY, **_DOT))
        handles.append(Patch(label="saves no parameters", color=SHADE))
        title = ": ".join(filter(None, [note, _TITLES[kind]]))
        draw_key(panels, handles, note if len(names) == 1 else title)

    def _plot_parameters(
        self, ax: Any, names: list[str], energy: float, note: str, line_kw: dict
    ) -> None:
        size = (6.0, 1.2 + 0.2 * len(names))
        self.axes_ = make_panels(type(self).__name__, ax, 1, size).axes
        axes = self.axes_[0]
        shares = 100 * np.array(
            [[stored_share(own[name], energy) for name in names] for own in self.spectra.values()]
        )
        rows = np.arange(len(names))
        axes.hlines(rows, shares.min(axis=0), shares.max(axis=0), color=GREY, linewidth=0.8)
        self.lines_ = np.empty((1, len(shares)), dtype=object)
        for i, (label, own) in enumerate(self.spectra.items()):
            total = f"{100 * total_share(own.values(), energy):.3g} % in total"
            style = {
                "label": f"{label} ({total})" if len(shares) > 1 else total,
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "linestyle": "",
                # Hollow, so that markers at the same place are all seen.
                "markerfacecolor": "none",
                "markeredgewidth": 1.6,
            }
            (self.lines_[0, i],) = axes.plot(shares[i], rows, **(style | line_kw))
        axes.axvspan(100, 200, color=SHADE, linewidth=0, zorder=0, label="saves no parameters")
        axes.set_xlim(0, min(200, max(105, 1.03 * shares.max())))
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(rows, [shorten(name, 40) for name in names], fontsize="small")
        axes.grid(axis="y", color=SHADE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"% of the layer's parameters, for {100 * energy:.4g} % of its energy")
        above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2, "frameon": False}
        axes.legend(title=note, fontsize="small", **above)


def evenly(names: list[str], most: int) -> list[str]:
    """Take so many names at even distances, the first and the last among them."""
    places = np.linspace(0, len(names) - 1, min(most, len(names)))
    return [names[i] for i in places.round().astype(int)]


def _draw_layer(
    axes: Axes, spectra: Sequence[Spectrum], kind: str, energy: float, line_kw: dict
) -> list[Line2D]:
    """Draw one layer of every model; shaded, the ranks at which no parameters are saved."""
    rows, columns = spectra[0].shape
    axes.axvspan(max(rows, columns) / (rows + columns), 2, color=SHADE, linewidth=0)
    lines = []
    for i, spectrum in enumerate(spectra):
        values = pooled_values(spectrum)
        x = np.arange(1, len(values) + 1) / len(values)
        y = 1 - lost_energy(spectrum) if kind == "energy" else values / (values[0] or 1.0)
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": LINES[i % len(LINES)],
            "linewidth": 1.4,
        }
        lines += axes.plot(x, y, **(style | line_kw))
        dot = rank_keeping(spectrum, energy) - 1
        axes.plot(x[dot], y[dot], color=lines[-1].get_color(), **_DOT)
    return lines


def _frame(axes: Axes, kind: str, lowest: float, left: bool, bottom: bool) -> None:
    """Give all panels the same limits, and labels to those at the edge."""
    axes.tick_params(labelsize="x-small", labelleft=left, labelbottom=bottom)
    axes.set_xlim(0, 1.03)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    if bottom:
        axes.set_xlabel("rank / full rank", fontsize="small")
    if kind == "values":
        # The limits first: without them a logarithmic axis warns of an all-zero weight.
        axes.set_ylim(0.6 * max(lowest, _FLOOR), 1.5)
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05)
    if not left:
        axes.minorticks_off()  # two thirds of the time that drawing takes, and nobody reads them
    else:
        text = "singular value" if kind == "values" else "energy kept"
        axes.set_ylabel(text, fontsize="small")
