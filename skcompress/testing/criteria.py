"""Laws of pruning criteria."""

from __future__ import annotations

import torch
from torch import Tensor

from ..protocols import Criterion, DataCriterion, Evidence
from .cases import awkward_weights
from .estimators import check_unchanged, checked_estimator

FIELDS = ("gram", "gradient", "fisher", "relevance", "positive_relevance")


def check_criterion(plugin: Criterion | DataCriterion | type) -> None:
    """Check a pruning criterion, one that takes data or one that does not, on awkward weights.

    Laws: scores have the weight's shape, are finite and non-negative, repeat, and leave the weight
    and the evidence untouched. What `updated` gives is zero where nothing stays, of the weight's
    shape and dtype; with second moments of inputs it loses no more of the outputs than setting
    values to zero does. The evidence has what `needs` names and nothing else; inputs that are all
    zero, or fewer than the weight has columns, and gradients of zero are among it; an embedding has
    counts of look-ups instead of second moments.
    """
    criterion = checked_estimator(plugin, (Criterion, DataCriterion))
    name = type(criterion).__name__
    if isinstance(criterion, DataCriterion):
        needs = criterion.needs
        unknown = set(needs) - set(FIELDS)
        assert not unknown, f"{name}: needs {sorted(unknown)}, which is no field of Evidence"
        assert needs, f"{name}: needs nothing; derive it from Criterion"
    for case, weight in awkward_weights():
        if isinstance(criterion, Criterion):
            before = weight.clone()
            _check_scores(f"{name} on {case}", weight, criterion.scores(weight))
            same = torch.equal(criterion.scores(weight), criterion.scores(weight))
            assert same, f"{name} on {case}: does not repeat"
            check_unchanged(f"{name} on {case}", "scores borrows the weight", before, weight)
            continue
        for kind in ("plenty", "few inputs", "nothing", "look-ups"):
            where = f"{name} on {case} with {kind}"
            _check_with(criterion, where, weight, evidence_for(weight, criterion.needs, kind))


def evidence_for(weight: Tensor, needs: tuple[str, ...], kind: str) -> Evidence:
    """Make up what data could say of a weight (out, in, *kernel).

    kind : "plenty" of inputs, "few inputs", "nothing" but zeros, or "look-ups" for second moments
    """
    generator = torch.Generator().manual_seed(7)
    n = weight[0].numel()
    found: dict[str, Tensor] = {}
    for what in needs:
        if what == "gram" and kind == "look-ups":
            found["lookups"] = torch.rand(len(weight), generator=generator, dtype=torch.float64)
        elif what == "gram":
            n_inputs = {"plenty": 4 * n, "few inputs": max(1, n // 3)}.get(kind, 1)
            x = torch.randn(n_inputs, n, generator=generator, dtype=torch.float64)
            x = (
                x
                * (kind != "nothing")
                @ torch.randn(n, n, generator=generator, dtype=torch.float64)
            )
            found["gram"] = x.mT @ x / n_inputs
        else:
            values = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            values = values.square() if what == "fisher" else values
            found[what] = values * (kind != "nothing")
    return Evidence(**found)


def _check_scores(where: str, weight: Tensor, scores: Tensor) -> None:
    assert scores.shape == weight.shape, f"{where}: scores {tuple(scores.shape)}"
    assert torch.isfinite(scores).all(), f"{where}: scores not finite"
    assert (scores >= 0).all(), f"{where}: negative scores"


def _check_with(criterion: DataCriterion, where: str, weight: Tensor, evidence: Evidence) -> None:
    before = weight.clone()
    given = {k: v.clone() for k, v in vars(evidence).items() if v is not None}
    scores = criterion.scores(weight, evidence)
    _check_scores(where, weight, scores)
    again = criterion.scores(weight, evidence)
    assert torch.equal(scores, again), f"{where}: does not repeat"
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    found = criterion.updated(weight, evidence, kept)
    assert found.shape == weight.shape, f"{where}: updated gives {tuple(found.shape)}"
    assert found.dtype == weight.dtype, f"{where}: updated changes the dtype"
    assert torch.isfinite(found).all(), f"{where}: updated values not finite"
    assert not found[~kept].any(), f"{where}: updated fills what is to be zero"
    if evidence.gram is not None:
        plain = _loss(weight, weight * kept, evidence.gram)
        updated = _loss(weight, found, evidence.gram)
        slack = 0.02 * _loss(weight, torch.zeros_like(weight), evidence.gram) + 1e-12
        assert updated <= plain + slack, f"{where}: updated loses {updated}, zeros alone {plain}"
    check_unchanged(where, "scores borrows the weight", before, weight)
    for what, value in given.items():
        same = torch.equal(value, getattr(evidence, what))
        assert same, f"{where}: the evidence ({what}) was changed"


def _loss(weight: Tensor, other: Tensor, gram: Tensor) -> float:
    """E |(W - W') x|^2."""
    lost = (weight - other).flatten(1).to(gram)
    return float((lost @ gram * lost).sum())
