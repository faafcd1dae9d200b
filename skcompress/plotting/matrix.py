"""The matrix that a weight is unfolded to, as an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from torch import Tensor, nn

from ..unfolding import SCHEMES, unfold
from .matching import finite_weight, matching_sites
from .panels import make_panels, require_matplotlib, shorten

# Share of the entries that the colours tell apart; the few beyond their limit look alike.
_WITHIN_LIMIT = 0.99


class WeightDisplay:
    """A weight unfolded to a matrix, as an image: of one model, or of several.

    What a penalty on weights did can be seen here. Weights as training usually leaves them
    look like noise; a low-rank matrix is plaid; where neighbours are alike there are
    patches. Make one with `from_model`, `from_models` or `from_weight`.

    Parameters
    ----------
    matrices : dict of model label -> array of shape (rows, columns)
    shape : (out, in, *kernel) of the weight; of a grouped layer, `out` of all groups
    layer : str, name for the titles

    Attributes
    ----------
    figure_ : matplotlib Figure
    axes_ : object array of matplotlib Axes, one for each model
    images_ : list of matplotlib AxesImage
    colorbar_ : matplotlib Colorbar, or None

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))
    >>> display = WeightDisplay.from_model(model, "0")
    >>> display.matrices["model"].shape
    (16, 72)
    >>> display.plot(normalize=False, cmap="PuOr").axes_.shape
    (1,)
    """

    def __init__(
        self, *, matrices: Mapping[str, np.ndarray], shape: Sequence[int], layer: str = ""
    ):
        self.matrices = matrices
        self.shape = shape
        self.layer = layer

    @classmethod
    def from_model(
        cls, model: nn.Module, layer: str, *, scheme: str = "output", ax: Any = None, **kwargs: Any
    ) -> WeightDisplay:
        """Draw one weight of a model.

        layer : name of the weight, as `print(compressor.report_)` has it
        scheme : {"output", "input", "spatial"}, the matrix that a convolution is unfolded
            to; a weight without two kernel axes takes "output" for "spatial". The groups of
            a grouped layer are below each other.
        ax, kwargs : as in `plot`
        """
        return cls.from_models({"model": model}, layer, scheme=scheme, ax=ax, **kwargs)

    @classmethod
    @validate_params(
        {"layer": [str], "scheme": [StrOptions(set(SCHEMES))]}, prefer_skip_nested_validation=False
    )
    @torch.no_grad()
    def from_models(
        cls,
        models: Mapping[str, nn.Module],
        layer: str,
        *,
        scheme: str = "output",
        ax: Any = None,
        **kwargs: Any,
    ) -> WeightDisplay:
        """Draw the same weight of several models beside each other, in the same colours.

        models : dict of label -> model
        layer, scheme, ax, kwargs : as in `from_model`
        """
        require_matplotlib(f"{cls.__name__}.from_models")
        sites = matching_sites(cls.__name__, models, layer, parameter="layer")
        names = [site.name for site in next(iter(sites.values()))]
        if len(names) > 1:
            listed = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
            raise ValueError(
                f"layer={layer!r} of {cls.__name__} stands for {len(names)} weights: choose one of "
                f"{listed}"
            )
        weights = {
            str(label): finite_weight(site).flatten(0, 1) for label, (site,) in sites.items()
        }
        return cls._from_weights(weights, scheme, names[0]).plot(ax, **kwargs)

    @classmethod
    @validate_params({"scheme": [StrOptions(set(SCHEMES))]}, prefer_skip_nested_validation=False)
    @torch.no_grad()
    def from_weight(
        cls,
        weight: Tensor | ArrayLike,
        *,
        scheme: str = "output",
        name: str = "weight",
        ax: Any = None,
        **kwargs: Any,
    ) -> WeightDisplay:
        """Draw a tensor or an array of shape (out, in, *kernel).

        name : for the title
        scheme, ax, kwargs : as in `from_model`
        """
        require_matplotlib(f"{cls.__name__}.from_weight")
        tensor = torch.as_tensor(weight).detach()
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if tensor.dim() < 2 or tensor.numel() == 0:
            raise ValueError(
                f"weight of {cls.__name__} must be of shape (out, in, *kernel) and not empty; "
                f"got {tuple(tensor.shape)}"
            )
        n_bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if n_bad:
            raise ValueError(f"weight of {cls.__name__} has {n_bad} NaN or infinite values")
        return cls._from_weights({"weight": tensor}, scheme, name).plot(ax, **kwargs)

    @classmethod
    def _from_weights(cls, weights: Mapping[str, Tensor], scheme: str, layer: str) -> WeightDisplay:
        # Cloned, for what unfolding gives may be the model's own memory.
        matrices = {k: unfold(w, scheme).clone().cpu().numpy() for k, w in weights.items()}
        shape = tuple(next(iter(weights.values())).shape)
        return cls(matrices=matrices, shape=shape, layer=layer)

    @validate_params(
        {
            "normalize": ["boolean"],
            "limit": [Interval(Real, 0, None, closed="neither"), None],
            "colorbar": ["boolean"],
            "im_kw": [dict, None],
        },
        prefer_skip_nested_validation=False,
    )
    def plot(
        self,
        ax: Any = None,
        *,
        normalize: bool = True,
        limit: float | None = None,
        cmap: Any = "RdBu_r",
        colorbar: bool = True,
        im_kw: dict[str, Any] | None = None,
    ) -> WeightDisplay:
        """Draw the matrices, all in the same colours, with white for zero.

        ax : None for a new figure; an Axes, which gives its place to a panel per model; or
            an Axes for each model
        normalize : divide each matrix by the root mean square of its entries. Penalties
            shrink weights, which says nothing of their structure and would leave a pale image.
        limit : the size at which colours end; None for what 99 % of the entries stay below
        cmap : a diverging colour map
        im_kw : further keywords for `Axes.imshow`
        """
        require_matplotlib(f"{type(self).__name__}.plot")
        scaled = {
            label: matrix / (root_mean_square(matrix) if normalize else 1.0)
            for label, matrix in self.matrices.items()
        }
        if limit is None:
            entries = np.concatenate([np.abs(matrix).ravel() for matrix in scaled.values()])
            limit = float(np.quantile(entries, _WITHIN_LIMIT)) or float(entries.max()) or 1.0
        size = (5.2, 3.8) if len(scaled) == 1 else (3.4, 2.9)
        panels = make_panels(type(self).__name__, ax, len(scaled), size)
        out, inputs = self.shape[:2]
        style = {
            "cmap": cmap,
            "vmin": -limit,
            "vmax": limit,
            "aspect": "auto",
            # Ticks count channels, each as wide as its kernel has entries.
            "extent": (-0.5, inputs - 0.5, out - 0.5, -0.5),
            # Averaging neighbours, the default, would make noise look smooth.
            "interpolation": "nearest",
            **(im_kw or {}),
        }
        self.axes_ = panels.axes
        self.images_ = [
            axes.imshow(matrix, **style)
            for axes, matrix in zip(panels.axes, scaled.values(), strict=True)
        ]
        self.figure_ = panels.axes[0].figure
        title = f"{shorten(self.layer, 40)}  ({' x '.join(map(str, self.shape))})"
        if panels.key is not None:
            panels.key.text(0.5, 0.5, title, ha="center", va="center")
        for label, axes, left, bottom in zip(scaled, *panels[:3], strict=True):
            axes.set_title(title if len(scaled) == 1 else label)
            self._label(axes, left, bottom)
        self.colorbar_ = None
        if colorbar:
            self.colorbar_ = self.figure_.colorbar(
                self.images_[0], ax=list(self.axes_), extend="both", pad=0.02, fraction=0.05
            )
            self.colorbar_.set_label("weight / root mean square" if normalize else "weight")
        return self

    def _label(self, axes: Any, left: bool, bottom: bool) -> None:
        from matplotlib.ticker import MaxNLocator

        sizes = next(iter(self.matrices.values())).shape
        names = [
            f"{side} channel x kernel" if size > channels else f"{side} channel"
            for side, size, channels in zip(("output", "input"), sizes, self.shape[:2], strict=True)
        ]
        axes.tick_params(labelsize="small", labelleft=left, labelbottom=bottom)
        for axis in (axes.yaxis, axes.xaxis):
            axis.set_major_locator(
                MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
            )
        axes.set_ylabel(names[0] if left else "")
        axes.set_xlabel(names[1] if bottom else "")


def root_mean_square(matrix: np.ndarray) -> float:
    """Root mean square of the entries; 1 where all are zero."""
    return float(np.sqrt(np.mean(np.square(matrix, dtype=np.float64)))) or 1.0
