"""Gradients with respect to the weights themselves, for what criteria of pruning ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MetaWeightError, NonFiniteGradientError
from ..layers import kind_of
from ..layers.reparametrized import copied, make_plain
from ..layers.writing import slot_of
from ..network.batches import Batch, Batches
from ..network.observing import differentiable, observe
from ..network.weights import Site
from .backward import Differentiating, score
from .outputs import Form
from .passes import generator
from .relevance import RULES, set_rule

# How often outputs are drawn for one batch. Of the sum of a batch's gradients the square is on
# average the sum of their squares, as they are independent and average to nothing; more draws
# make it less noisy, each for one backward pass.
DRAWS = 4
_LABELS = "draws at the outputs."


def weight_gradients(
    model: nn.Module,
    sites: Sequence[Site],
    data: Batches,
    what: str,
    *,
    seed: int = 0,
    verbose: bool | int = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each site with a tensor of its weight's shape, (groups, out, in, *kernel).

    what : "gradient", E[dl/dw], with l the log-likelihood of the class that the network finds most
        probable, or half the squared norm of outputs that are no classes; "fisher", E[(dl/dw)^2]
        for outputs drawn from the network's own distribution; "relevance" and
        "positive_relevance", E[R], of the output for the most probable class, by the rules
        "epsilon" and "positive" of `statistics.relevance`

    Means are over inputs, or positions of sequences, as `Batch.weights` has them count. The model
    runs in eval mode, as a copy with parameters of its own: memory of the model and of its
    gradients. Weights that no batch reaches are missing.
    """
    with differentiable():
        own = _plain_copy(model, sites)
        slots = {site.name: _slot(own, site) for site in sites}
        for parameter in own.parameters():
            parameter.requires_grad_(False)
        stored = {id(p): p for slot in slots.values() for p in slot.parameters}
        for parameter in stored.values():
            parameter.requires_grad_()
        if what in _RULE:
            for name in {user for site in sites for user, _ in site.users}:
                set_rule(own.get_submodule(name), _RULE[what])
    reducer = _Gradients(list(stored.values()), what, generator(seed, _LABELS))
    observe(own, data, reducer, title=what, verbose=verbose, gradients=True)
    sums, n = reducer.sums, reducer.n or 1.0
    with torch.no_grad():
        # Slots are views of what stores them: with the sums in its place they show those.
        for key, parameter in stored.items():
            found = sums[key]
            weight = parameter.detach().clone() if what in _RULE else None
            if found is not None:
                found = found / n
                parameter.copy_(found if weight is None else found * weight)
        for site in sites:
            if all(sums[id(p)] is not None for p in slots[site.name].parameters):
                value = slots[site.name].read().detach().clone()
                if not value.isfinite().all():
                    raise NonFiniteGradientError(site.name)
                yield site.name, value


_RULE = {"relevance": RULES[0], "positive_relevance": RULES[1]}


def _plain_copy(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """Copy a model in eval mode, with the weights of the sites as plain parameters."""
    for site in sites:
        if site.slot.read().is_meta:
            raise MetaWeightError(site.name)
    result = copied(model)
    for site in sites:
        for name, _ in site.users:
            make_plain(result.get_submodule(name))
    return result.eval()


def _slot(model: nn.Module, site: Site) -> Any:
    module_name, slot_name = site.users[0]
    module = model.get_submodule(module_name)
    kind = kind_of(module)
    assert kind is not None
    return slot_of(kind, module, slot_name)


class _Gradients(Differentiating):
    """Sums of gradients with respect to parameters, by the id of the parameter.

    n : what they are to be divided by
    """

    def __init__(self, parameters: Sequence[nn.Parameter], what: str, draws: torch.Generator):
        super().__init__()
        self.sums: dict[int, Tensor | None] = {id(p): None for p in parameters}
        self.n = 0.0
        self._parameters, self._what, self._draws = parameters, what, draws

    def differentiate(self, batch: Batch, rows: Tensor, form: Form) -> None:
        counts = _row_weights(rows.detach(), batch)
        squared = self._what == "fisher"
        n_draws = DRAWS if squared else 1
        for draw in range(n_draws):
            start = _START[self._what](rows.detach(), form, self._draws)
            start = start * (counts.sqrt() if squared else counts)[:, None]
            found = torch.autograd.grad(
                rows, self._parameters, start.to(rows.dtype), allow_unused=True,
                retain_graph=draw + 1 < n_draws,
            )  # fmt: skip
            for parameter, gradient in zip(self._parameters, found, strict=True):
                if gradient is not None:
                    self._add(parameter, gradient.square() / n_draws if squared else gradient)
        self.n += float(counts.sum())

    def _add(self, parameter: nn.Parameter, term: Tensor) -> None:
        known = self.sums[id(parameter)]
        self.sums[id(parameter)] = term.clone() if known is None else known.add_(term)


def _row_weights(rows: Tensor, batch: Batch) -> Tensor:
    """How much each row of outputs counts: as much as the sample that it belongs to."""
    if batch.weights is None:
        return rows.new_ones(len(rows))
    weights = batch.weights.to(rows)
    if batch.mask is not None and int(batch.mask.sum()) == len(rows):
        return weights[:, None].expand(batch.mask.shape)[batch.mask]
    # Rows that cannot be told apart by samples count alike.
    each, rest = divmod(len(rows), max(1, len(weights)))
    return rows.new_ones(len(rows)) if rest else weights.repeat_interleave(each)


def _most_probable(rows: Tensor) -> Tensor:
    return torch.zeros_like(rows).scatter_(1, rows.argmax(1, keepdim=True), 1.0)


def _of_likelihood(rows: Tensor, form: Form, _: torch.Generator) -> Tensor:
    return rows if form.axis is None else _most_probable(rows) - rows.softmax(1)


def _of_output(rows: Tensor, form: Form, _: torch.Generator) -> Tensor:
    return rows if form.axis is None else _most_probable(rows)


# By what is asked for: the gradient at the rows of outputs that a backward pass starts from.
_START: dict[str, Callable[[Tensor, Form, torch.Generator], Tensor]] = {
    "gradient": _of_likelihood,
    "fisher": lambda rows, form, draws: score(rows, form, "labels", draws),
    "relevance": _of_output,
    "positive_relevance": _of_output,
}
