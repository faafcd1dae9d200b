"""Networks whose outputs cannot be compared are compressed all the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skcompress import Pruner, SVDCompressor
from skcompress.errors import OutputShapeError, OutputTypeError
from skcompress.fitting import comparison


class Finder(nn.Module):
    """Gives as many rows as it finds, or their numbers alone."""

    def __init__(self, numbers):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 40), nn.BatchNorm1d(40), nn.ReLU())
        self.head = nn.Linear(40, 30)
        self.numbers = numbers

    def forward(self, x):
        scores = self.head(self.body(x))
        found = scores[scores[:, 0] > 0]
        return found.argmax(1) if self.numbers else found


def test_a_handful_of_samples_estimates_nothing_unasked():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 30))
        x = torch.rand(comparison.ENOUGH, 20)
    model[0].weight.data.abs_()  # zeros among them take a lot of the mean
    model[1].momentum = 1.0
    model.train()(x)
    few, enough = (list(x[:n].split(16)) for n in (comparison.ENOUGH - 1, comparison.ENOUGH))
    estimated = {
        name: Pruner("wanda", 0.8, recalibrate_norm=setting)
        .fit(model.eval(), data)
        .fitted_.norms.keys()
        for name, setting, data in (
            ("few", "auto", few), ("enough", "auto", enough), ("asked", True, few),
        )
    }  # fmt: skip
    assert estimated == {"few": set(), "enough": {"1"}, "asked": {"1"}}


@pytest.mark.parametrize(("numbers", "error"), [(True, OutputTypeError), (False, OutputShapeError)])
def test_only_what_needs_the_comparison_is_refused(numbers, error):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Finder(numbers).eval(), torch.randn(64, 20)
    for recalibrate in ("auto", True):
        compressor = SVDCompressor(rank=0.3, recalibrate_norm=recalibrate).fit(model, x)
        assert compressor.report_.divergence is None
        assert "divergence" not in str(compressor.report_)
        assert compressor.report_.measured
    recalibrated = compressor.transform(model).body[1]
    assert not torch.equal(recalibrated.running_var, model.body[1].running_var)
    with pytest.raises(error):
        SVDCompressor(rank=0.3, sensitivity="auto").fit(model, x)
