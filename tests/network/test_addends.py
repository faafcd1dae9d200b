"""What the outputs of layers are added to: found in one forward, made up for in the next fit."""

from __future__ import annotations

import pytest
import torch
from models import random, seeded
from torch import nn

from skcompress import Pruner, SVDCompressor
from skcompress.layers import kind_of
from skcompress.lockstep.lockstep import Lockstep
from skcompress.network.addends import Addend, Place
from skcompress.network.batches import batches
from skcompress.network.structure import look


class Block(nn.Module):
    """A residual block; how its sum is written is up to `add`."""

    def __init__(self, add, norm=False):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6, bias=not norm), nn.Linear(6, 6, bias=not norm)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.add = add

    def forward(self, x):
        return self.add(x, self.norm(self.two(self.one(x).relu())))


def in_place(x, h):
    h += x
    return h.relu()


SUMS = {
    "x + h": lambda x, h: x + h,
    "h + x": lambda x, h: h + x,
    "torch.add": torch.add,
    "h += x": in_place,
    "x += h": lambda x, h: x.add_(h),
}
OTHERS = {
    "read twice": lambda x, h: (x + h) * h,
    "read before": lambda x, h: x + h if h.sum() > -1e9 else h,
    "scaled": lambda x, h: torch.add(x, h, alpha=2),
    "spread": lambda x, h: x.mean(0) + h,
    "a number": lambda x, h: h + 1.0,
    "what no module saw": lambda x, h: x * 2 + h,
}


def found(model, x):
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return look(model, names, batches("Test", x, model)).addends


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("add", SUMS.values(), ids=SUMS)
def test_ends_of_residual_blocks_are_found(add, norm):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), Block(add, norm), Block(add, norm)))
    ends = found(model.eval(), random(20, 4))
    assert list(ends) == ["1.two", "2.two"]
    assert ends["1.two"].place in (Place("0", True), Place("1", False), Place("1.one", False))
    for name, end in ends.items():
        norm_after = model[int(name[0])].norm
        assert (end.scale is not None) == norm
        if norm:
            expected = norm_after.weight / (norm_after.running_var + norm_after.eps).sqrt()
            torch.testing.assert_close(end.scale, expected.double())


@pytest.mark.parametrize("add", OTHERS.values(), ids=OTHERS)
def test_nothing_else_is_taken_for_one(add):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), Block(add))).eval()
    assert not found(model, random(20, 4))


def test_what_comes_after_the_layer_or_several_times_is_of_no_use():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.side, self.twice = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x):
            return self.main(x) + self.side(x) + self.twice(self.twice(x.relu()))

    # The second sum has the first for its addend, which no module gave.
    assert found(seeded(Late), random(20, 6)) == {
        "side": Addend(Place("main", output=True), None),
    }


def test_the_goal_is_the_sum():
    model, x = seeded(lambda: nn.Sequential(nn.Linear(4, 6), Block(torch.add))), random(20, 4)
    model = model.double().eval()
    data = batches("Test", x, model, batch_size=8)
    other = seeded(lambda: nn.Linear(4, 6), 1).double()
    names = ["0", "1.one", "1.two"]
    networks = Lockstep(model, names, data, look(model, names, data))
    with torch.no_grad():
        for name in networks:
            layer = networks.pristine(name)
            (slot,) = kind_of(layer).slots(layer)
            moments = networks.anchored(name, {"": slot})[""]
            if name == "0":
                networks.replace("0", other)
        before, now = model[0](x), other(x)
        inputs = model[1].one(now).relu()
        weight = model[1].two.weight
        goal = model[1].one(before).relu() @ weight.T + before - now
    torch.testing.assert_close(moments.with_means().cross[0], (goal.T @ inputs) / 20)
    torch.testing.assert_close(moments.outputs[0], goal.mean(0))
    torch.testing.assert_close(moments.with_means().energy[0], goal.square().mean(0))
    assert not any(paused.kept for pair in networks._pairs for paused in pair)


def test_channels_that_are_multiplied_by_nothing_make_up_for_nothing():
    addend = Addend(Place("0", True), torch.tensor([2.0, 0.0, -4.0, 1e-9], dtype=torch.float64))
    gap = addend.missing(torch.ones(3, 4, 2, 2), torch.zeros(3, 4, 2, 2))
    assert torch.equal(gap[0, :, 0, 0], torch.tensor([0.5, 0.0, -0.25, 0.0]))
    nothing = Addend(Place("0", True), torch.zeros(4, dtype=torch.float64))
    assert not nothing.missing(torch.ones(3, 4), torch.zeros(3, 4)).any()


class Residual(nn.Module):
    """Convolutional, with normalisations; the shortcut of the second block comes last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.a, self.b = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.c, self.d = nn.Conv2d(12, 16, 3, 2, 1), nn.Conv2d(12, 16, 1, 2)
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, (12, 12, 12, 16, 16)))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.norms[0](self.stem(x)).relu()
        x = (x + self.norms[2](self.b(self.norms[1](self.a(x)).relu()))).relu()
        x = (self.norms[3](self.c(x)) + self.norms[4](self.d(x))).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    "compressor",
    [SVDCompressor(0.3, refit_dense=True), Pruner(sparsity=0.8, refit=True)],
    ids=["low rank", "pruned"],
)
def test_sums_come_closer_by_it(compressor, monkeypatch):
    def build():
        model = Residual()
        model.train()
        model(torch.randn(64, 3, 8, 8))  # statistics of the normalisations
        return model.eval()

    model = seeded(build)
    x = random(200, 3, 8, 8)
    losses = [compressor.fit(model, x).report_.divergence]
    monkeypatch.setattr("skcompress.network.structure._Watching._addend_place", lambda *_: None)
    losses.append(compressor.fit(model, x).report_.divergence)
    assert losses[0] < 0.97 * losses[1]
