"""How much a network's outputs react to the output of each weight: the Fisher's output side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationValueError, NonFiniteGradientError
from ..layers import LayerKind, kind_of
from ..network.batches import Batch, Batches, device_of
from ..network.observing import observe
from ..network.weights import Site
from ..protocols import SecondMoment
from .backward import Differentiating, score
from .moments import MomentSum
from .outputs import Form
from .passes import GIB, Positions, by_module, check_settings, generator, passes, positions_of

Watch = Callable[[Tensor], None]

DRAWS = ("signs", "labels")
# No layer can have this name.
_LABELS = "draws at the outputs."


def output_moments(
    model: nn.Module,
    sites: Sequence[Site],
    data: Batches,
    *,
    likelihood: str = "auto",
    draw: str = "signs",
    memory: float = 2 * GIB,
    max_positions: Positions = None,
    seed: int = 0,
    verbose: bool | int = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each site and the second moment G of gradients at its output.

    With y_p = W x_p the output of a weight at position p, g_p is the gradient with respect
    to y_p of the log-likelihood of labels, one for each position of the model's output, that
    follow the distribution which the model itself gives there. Then

        G = sum over p of g_p g_p^T, divided by the number of labels,

    float64 (groups, out, out). With A = E[x x^T] over positions, `Moments.gram`, the Kronecker
    product of A and G is the block of W in the Fisher information of one label, as K-FAC
    takes it ("expand": gradients at different positions uncorrelated). A small change D of
    W moves the outputs by a KL divergence of about tr(G D A D^T) / 2 nats for each label.

    likelihood : how the model's main output is read, see `outputs.form_of`; "gaussian" means
        an error of unit variance, so that the gradient at the output is a standard normal draw
    draw : what goes backwards from logits. "labels": the gradient for a label drawn from the
        distribution p. "signs": (diag(sqrt p) - p sqrt(p)^T) v with random signs v, which has
        the same second moment, diag(p) - p p^T, with less noise: where the model is sure, a
        drawn label says nothing in most draws and much in the rare others.
    memory : bytes for the sums of one pass over the data, on the model's device. Where
        those of all sites are more, there are several passes, with the same draws. Of a
        weight whose G alone is more, such as the output head of a language model, only the
        diagonal is measured, (groups, out).
    max_positions : how many positions of one call of a layer are used at most, drawn anew
        in each call; None for all of them
    seed : of all draws

    Absent are sites whose outputs no gradient reaches, because they are not called, or
    under `torch.no_grad` or `torch.inference_mode` inside the forward, and weights whose own
    output does not leave its layer: embeddings, recurrent layers, attention, experts.
    Positions that an "attention_mask" masks do not count, as in `stream`.

    The model runs in eval mode as a copy that shares its parameters, whether these are
    frozen or not; their `.grad` stays as it is. A forward that cannot be differentiated
    raises the error that torch has for it, with a note on the batch.

    References: Martens & Grosse 2015, arXiv 1503.05671 (K-FAC); Grosse & Martens 2016, arXiv
    1602.01407 (convolutions); Eschenhagen et al. 2023, arXiv 2311.00636 (expand); Kunstner
    et al. 2019, arXiv 1905.12558 (why labels are the model's own); Martens, Sutskever &
    Swersky 2012, arXiv 1206.6464 (factors of the curvature times random signs).

    >>> from skcompress.network.batches import batches
    >>> from skcompress.network.weights import select
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    >>> data = batches("Mine", torch.randn(50, 4), model)
    >>> for name, moment in output_moments(model, select(model).sites, data):
    ...     print(name, tuple(moment.shape))
    0 (1, 6, 6)
    2 (1, 3, 3)
    """
    check_settings(sites, memory, max_positions)
    if draw not in DRAWS:
        raise CalibrationValueError("draw", " or ".join(map(repr, DRAWS)), draw)

    def whole(site: Site) -> bool:
        groups, out, *_ = site.slot.shape
        return groups * out**2 * torch.float64.itemsize <= memory

    def size(site: Site) -> int:
        groups, out, *_ = site.slot.shape
        return groups * (out**2 if whole(site) else out)

    visible = [site for site in sites if _visible(site)]
    for part, title in passes("gradients", visible, memory, size):
        sums = {
            site.name: _GradientSum(
                site,
                whole(site),
                positions_of(max_positions, site.slot),
                generator(seed, site.name),
            )
            for site in part
        }
        reducer = _OutputMoments(part, sums, likelihood, draw, generator(seed, _LABELS))
        observe(model, data, reducer, title=title, verbose=verbose, gradients=True)
        n_labels = max(1, reducer.n_labels)
        while part:
            name = part.pop(0).name
            found = sums.pop(name).moments
            if found is not None:
                diagonal = found if found.dim() == 2 else found.diagonal(dim1=1, dim2=2)
                if not diagonal.isfinite().all():
                    raise NonFiniteGradientError(name)
                yield name, found.div_(n_labels)


def kfac_energy(change: Tensor, inputs: Sequence[SecondMoment], moment: Tensor) -> float:
    """Give tr(G D A D^T), summed over groups: twice the KL divergence that a change D costs.

    change : (groups, out, in, *kernel); the weight itself for the energy of a layer
    inputs : E[x x^T] of each group
    moment : (groups, out, out), or its diagonal (groups, out), of `output_moments`
    """
    energy = 0.0
    for part, second, gradients in zip(change.detach().flatten(2), inputs, moment, strict=True):
        d = part.to(torch.float64)
        g = gradients.to(d)
        weighed = g @ d if g.dim() == 2 else g[:, None] * d
        energy += float((second.times(d) * weighed).sum())
    return energy


class _Tap(torch.autograd.Function):
    """Pass a tensor on, and show the gradient that comes back.

    anchor : a scalar with gradient. Every tap hangs on it, so that the gradient with
        respect to it runs through all taps, and through nothing else: not into the weights,
        and not below the first layer; and it runs where no parameter is trained.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, watch: Callable[[Tensor], None]
    ) -> Tensor:
        ctx.watch = watch
        # A copy: nn.ReLU(inplace=True) writes into it, which autograd forbids for views.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ctx.watch(gradient)
        return gradient, None, None


class _GradientSum:
    """Sum of g g^T of one weight."""

    def __init__(
        self, site: Site, whole: bool, max_positions: int | None, generator: torch.Generator
    ):
        groups, out, *_ = site.slot.shape
        device = site.slot.parameters[0].device
        self._settings = (groups, out, device, max_positions, generator, not whole)
        self._sum: MomentSum | None = None

    def add(self, columns: Any, mask: Tensor | None) -> None:
        self._sum = self._sum or MomentSum(*self._settings)
        self._sum.add(columns, mask)

    @property
    def moments(self) -> Tensor | None:
        """The sum; None where no gradient came."""
        return None if self._sum is None or not self._sum.count.any() else self._sum.gram


def _visible(site: Site) -> bool:
    """Whether the kind of some layer that uses the weight says what its outputs are."""
    kinds = map(kind_of, site.modules)
    return any(type(kind).outputs is not LayerKind.outputs for kind in kinds if kind)


class _OutputMoments(Differentiating):
    """Draws gradients at the outputs of a network, and sums up what comes back to its layers."""

    def __init__(
        self,
        sites: Sequence[Site],
        sums: dict[str, _GradientSum],
        likelihood: str,
        draw: str,
        draws: torch.Generator,
    ):
        super().__init__(likelihood)
        self.n_labels = 0
        self._sites, self._sums = sites, sums
        self._draw, self._draws = draw, draws
        self._anchor = torch.zeros(())
        self._batch: Batch | None = None

    def attach(self, network: nn.Module) -> None:  # type: ignore[override]
        super().attach(network)
        self._anchor = torch.zeros((), device=device_of(network), requires_grad=True)
        # First of all hooks: others may change what the layer gives.
        for name, site_of in by_module(self._sites).items():
            network.get_submodule(name).register_forward_hook(self._hook(site_of), prepend=True)

    def before(self, batch: Batch) -> None:
        self._batch = batch

    def differentiate(self, batch: Batch, rows: Tensor, form: Form) -> None:
        drawn = score(rows.detach(), form, self._draw, self._draws)
        self.n_labels += len(rows)
        if rows.requires_grad:
            torch.autograd.grad(rows, self._anchor, drawn, allow_unused=True)

    def _hook(self, site_of: dict[str, str]) -> Callable[..., Tensor]:
        def watch(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            kind = kind_of(module)
            assert kind is not None

            def add(gradient: Tensor) -> None:
                assert self._batch is not None
                for slot, columns in kind.outputs(module, gradient).items():
                    if slot in site_of:
                        self._sums[site_of[slot]].add(columns, self._batch.mask)

            return _Tap.apply(output, self._anchor, add)  # type: ignore[no-any-return]

        return watch
