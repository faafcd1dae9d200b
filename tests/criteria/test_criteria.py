"""Scores of the criteria against their definitions."""

from __future__ import annotations

import pytest
import torch
from models import random
from torch import nn

from skcompress import Pruner, testing
from skcompress.criteria.lamp import LAMP
from skcompress.criteria.lrp import LRP
from skcompress.criteria.magnitude import Magnitude
from skcompress.criteria.obs import OBS
from skcompress.criteria.random import Random
from skcompress.criteria.wanda import Wanda
from skcompress.errors import CriterionValueError
from skcompress.protocols import Evidence

WEIGHT = random(6, 5, 3, 3, dtype=torch.float32)


def gram(n, seed=1):
    x = random(3 * n, n, seed=seed) @ random(n, n, seed=seed + 1)
    return x.mT @ x / (3 * n)


def test_lamp_is_the_square_over_the_sum_of_those_not_smaller():
    squares = WEIGHT.double().square()
    for score, square in zip(LAMP().scores(WEIGHT).flatten(), squares.flatten(), strict=True):
        assert float(score) == pytest.approx(float(square / squares[squares >= square].sum()))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lamp_does_not_depend_on_the_scale(scale):
    torch.testing.assert_close(LAMP().scores(WEIGHT * scale), LAMP().scores(WEIGHT))


def test_lamp_orders_as_magnitudes_do():
    one, other = (c.scores(WEIGHT).flatten().argsort() for c in (LAMP(), Magnitude()))
    assert torch.equal(one, other)


def test_wanda_is_the_mean_square_of_the_output_that_is_lost():
    x = random(500, 45)
    seen = Evidence(gram=x.mT @ x / 500)
    scores = Wanda().scores(WEIGHT.double(), seen)
    lost = WEIGHT[2, 1, 0, 2].double() * x.reshape(500, 5, 3, 3)[:, 1, 0, 2]
    torch.testing.assert_close(scores[2, 1, 0, 2], lost.square().mean())


def test_rows_of_an_embedding_count_as_often_as_they_are_looked_up():
    seen = Evidence(lookups=torch.tensor([0.5, 0.5, 0.0]))
    scores = Wanda().scores(torch.ones(3, 4), seen)
    assert torch.equal(scores, torch.tensor([0.5, 0.5, 0.0])[:, None].expand(3, 4))


def loss(weight, other, moment):
    lost = (weight - other).flatten(1).double()
    return float((lost @ moment * lost).sum())


def test_obs_scores_are_the_loss_once_the_others_have_made_up_for_it():
    moment = gram(45)
    criterion, seen = OBS(damping=1e-9), Evidence(gram=moment)
    weight = WEIGHT.double()
    scores = criterion.scores(weight, seen)
    for place in ((0, 0, 0, 0), (3, 4, 2, 1)):
        kept = torch.ones_like(weight, dtype=torch.bool)
        kept[place] = False
        updated = criterion.updated(weight, seen, kept)
        assert loss(weight, updated, moment) == pytest.approx(float(scores[place]), rel=1e-4)


def test_exact_updates_lose_no_more_than_sweeps_and_these_less_than_none():
    moment = gram(45)
    seen, kept = Evidence(gram=moment), random(6, 5, 3, 3, seed=9) > 0
    exact, swept = (OBS(update=u).updated(WEIGHT, seen, kept) for u in ("exact", "sweep"))
    losses = [loss(WEIGHT, w, moment) for w in (exact, swept, WEIGHT * kept)]
    assert losses[0] < losses[1] < 0.95 * losses[2]
    assert not swept[~kept].any()


def test_random_scores_differ_between_weights_and_repeat_with_a_seed():
    criterion = Random(random_state=3)
    assert torch.equal(criterion.scores(WEIGHT), criterion.scores(WEIGHT.clone()))
    assert not torch.equal(criterion.scores(WEIGHT), criterion.scores(WEIGHT + 1))
    assert not torch.equal(criterion.scores(WEIGHT), Random(random_state=4).scores(WEIGHT))


def test_lrp_asks_for_the_relevance_of_its_rule():
    assert LRP().needs == ("relevance",)
    assert LRP(rule="positive").needs == ("positive_relevance",)
    seen = Evidence(positive_relevance=-torch.ones(2, 2))
    assert torch.equal(LRP(rule="positive").scores(torch.zeros(2, 2), seen), torch.ones(2, 2))


def test_settings_without_meaning_are_refused():
    seen = Evidence(gram=gram(45))
    with pytest.raises(CriterionValueError, match="damping of OBS must be > 0; got 0"):
        OBS(damping=0).scores(WEIGHT, seen)
    with pytest.raises(CriterionValueError, match="update of OBS must be 'exact' or 'sweep'"):
        OBS(update="both").scores(WEIGHT, seen)
    with pytest.raises(CriterionValueError, match="rule of LRP"):
        _ = LRP(rule="gamma").needs


def test_wanda_by_output_keeps_the_same_share_of_every_row(generator):
    """As in the paper: within each row the largest |w| |x|, half of them."""
    layer = nn.Linear(16, 6, bias=False)
    with torch.no_grad():
        layer.weight.copy_(
            torch.randn(6, 16, generator=generator) * torch.logspace(-3, 3, 6)[:, None]
        )
    x = torch.randn(200, 16, generator=generator) * torch.logspace(-1, 1, 16)
    pruner = Pruner(Wanda(per_output=True), sparsity=0.5, allocation="uniform")
    kept = pruner.fit_transform(nn.Sequential(layer), x)[0].weight != 0
    scores = (layer.weight.abs() * x.norm(dim=0)).detach()
    expected = scores >= scores.sort(dim=1).values[:, 8:9]
    assert torch.equal(kept, expected)


def test_wanda_by_output_of_zeros_and_kernels(generator):
    weight = torch.randn(3, 4, 2, 2, generator=generator)
    weight[1] = 0
    seen = Evidence(gram=torch.eye(16, dtype=torch.float64))
    scores = Wanda(per_output=True).scores(weight, seen)
    assert not scores[1].any()
    assert torch.equal(scores[0].flatten().sort().values, torch.arange(1, 17) / 16)
    testing.check_criterion(Wanda(per_output=True))
