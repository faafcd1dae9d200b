"""Pictures of weights: what is computed, what is drawn, and where."""

from __future__ import annotations

import sys
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from models import LAYERS, layer, random, seeded
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skcompress import SVDCompressor
from skcompress.errors import (
    MetaWeightError,
    ModelMismatchError,
    ModelTypeError,
    NoLayerError,
    NonFiniteWeightError,
    SelectionError,
)
from skcompress.network.weights import select
from skcompress.plotting import SpectrumDisplay, WeightDisplay
from skcompress.plotting.energies import rank_keeping, total_share
from skcompress.protocols import Spectrum
from skcompress.testing import check_untouched, snapshot
from skcompress.unfolding import SCHEMES, unfold


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def network(seed: int = 0) -> nn.Module:
    """Without biases, so that all of its parameters are drawn."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2, bias=False),
            nn.Flatten(),
            nn.Linear(32, 12, bias=False),
        ),
        seed,
    )


@pytest.fixture
def model():
    return network()


@pytest.fixture
def pair():
    return {"plain": network(0), "smooth": network(1)}


def deep(n_layers: int) -> nn.Module:
    return seeded(lambda: nn.Sequential(*(nn.Linear(6, 6) for _ in range(n_layers))))


# --- what is computed ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_singular_values_of_every_kind_of_layer(name, scheme, dtype):
    built = layer(name)[0].to(dtype)
    display = SpectrumDisplay.from_model(built, scheme=scheme, max_layers=1)
    sites = select(built).sites
    assert list(display.spectra["model"]) == [site.name for site in sites]
    for site in sites:
        spectrum = display.spectra["model"][site.name]
        groups = [unfold(group, scheme) for group in site.slot.read().detach().double()]
        expected = torch.stack([torch.linalg.svdvals(group) for group in groups]).numpy()
        assert spectrum.shape == groups[0].shape
        assert spectrum.values.dtype == np.float64
        assert spectrum.values.shape == (expected if len(groups) > 1 else expected[0]).shape
        np.testing.assert_allclose(
            np.atleast_2d(spectrum.values), expected, atol=2e-6 * expected.max()
        )


def test_non_contiguous_and_parametrized_weights():
    transposed = nn.Linear(9, 9)
    transposed.weight.data = random(9, 9, dtype=torch.float32).T
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(9, 7))
    spectra = SpectrumDisplay.from_model(nn.Sequential(transposed, normed)).spectra["model"]
    for name, module in (("0", transposed), ("1", normed)):
        expected = torch.linalg.svdvals(module.weight.detach().double())
        np.testing.assert_allclose(spectra[name].values, expected, rtol=1e-4)


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_ranks_and_sizes_are_those_of_the_energy_allocation(model, energy):
    compressor = SVDCompressor(rank=energy, allocation="energy", scheme="output").fit(model)
    spectra = SpectrumDisplay.from_model(model).spectra["model"]
    for name, rank in compressor.ranks_.items():
        assert rank_keeping(spectra[name], energy) == rank
    share = compressor.n_parameters_out_ / compressor.n_parameters_in_
    assert total_share(spectra.values(), energy) == pytest.approx(share)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_matrices_are_the_unfolded_weights_in_memory_of_their_own(model, scheme):
    before = snapshot(model)
    for name in ("0", "2", "4"):
        weight = model[int(name)].weight.detach()
        matrix = WeightDisplay.from_model(model, name, scheme=scheme).matrices["model"]
        assert np.array_equal(matrix, unfold(weight, scheme))
        matrix += 1
    check_untouched("after writing into matrices", model, before)


# --- what is drawn ---------------------------------------------------------------------

EXACT = Spectrum(np.array([4.0, 2.0, 1.0, 0.5]), (4, 6))


def test_values_are_drawn_relative_to_the_largest():
    display = SpectrumDisplay(spectra={"model": {"a": EXACT}}).plot()
    line, dot = display.axes_[0].lines
    assert display.lines_.tolist() == [[line]]
    assert line.get_xdata().tolist() == [0.25, 0.5, 0.75, 1]
    assert line.get_ydata().tolist() == [1, 0.5, 0.25, 0.125]
    # Energies 16, 4, 1, 0.25 of 21.25: two of them are 94 %, three 98.8 %.
    assert (dot.get_xdata().tolist(), dot.get_ydata().tolist()) == ([1.0], [0.125])
    assert display.axes_[0].get_yscale() == "log"
    assert display.axes_[0].get_title() == "a\n4 x 6"


def test_energies_of_groups_add_up():
    grouped = Spectrum(np.array([[3.0, 1.0], [1.0, 0.0]]), (2, 5))
    display = SpectrumDisplay(spectra={"model": {"a": grouped}}).plot(kind="energy", energy=0.9)
    line, dot = display.axes_[0].lines
    np.testing.assert_allclose(line.get_ydata(), [10 / 11, 1])
    assert dot.get_xdata().tolist() == [0.5]


def test_parameters_that_an_energy_takes():
    spectra = {"plain": {"a": EXACT, "b": EXACT}, "smooth": {"a": EXACT, "b": EXACT}}
    spectra["smooth"]["b"] = Spectrum(np.array([4.0, 0.1, 0, 0]), (4, 6))
    display = SpectrumDisplay(spectra=spectra).plot(kind="parameters", energy=0.9)
    plain, smooth = display.lines_[0]
    per_rank = 100 * (4 + 6) / (4 * 6)
    np.testing.assert_allclose(plain.get_xdata(), [2 * per_rank, 2 * per_rank])
    np.testing.assert_allclose(smooth.get_xdata(), [2 * per_rank, per_rank])
    (axes,) = display.axes_
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert smooth.get_label() == "smooth (62.5 % in total)"


def test_one_line_per_model_and_a_key(pair):
    display = SpectrumDisplay.from_models(pair, layers=["0", "4"], line_kw={"alpha": 0.5})
    assert display.lines_.shape == (2, 2)
    assert len({line.get_color() for line in display.lines_[0]}) == 2
    assert len({line.get_linestyle() for line in display.lines_[0]}) == 2
    assert all(line.get_alpha() == 0.5 for line in display.lines_.flat)
    (key,) = [axes for axes in display.figure_.axes if axes.get_legend()]
    texts = [text.get_text() for text in key.get_legend().get_texts()]
    assert texts == ["plain", "smooth", "99 % of the energy", "saves no parameters"]


@pytest.mark.parametrize("kind", ["values", "energy"])
def test_many_layers_are_thinned_out_and_it_says_so(kind):
    display = SpectrumDisplay.from_model(deep(30), kind=kind)
    titles = [axes.get_title() for axes in display.axes_]
    assert len(titles) == len(set(titles)) == 20
    assert (titles[0], titles[-1]) == ("0\n6 x 6", "29\n6 x 6")
    (key,) = [axes for axes in display.figure_.axes if axes.get_legend()]
    assert key.get_legend().get_title().get_text().startswith("20 of 30 layers: ")
    assert display.plot(kind=kind, max_layers=40).axes_.shape == (30,)
    assert display.plot(kind="parameters").lines_[0, 0].get_xdata().shape == (30,)


def test_plots_as_often_as_wanted_from_values_alone(pair):
    first = SpectrumDisplay.from_models(pair)
    again = SpectrumDisplay(spectra=first.spectra)
    assert not hasattr(again, "figure_")
    assert again.plot() is again
    assert again.figure_ is not first.figure_
    for one, other in zip(first.lines_.flat, again.lines_.flat, strict=True):
        assert np.array_equal(one.get_ydata(), other.get_ydata())

    weight = WeightDisplay.from_models(pair, "4")
    copy = WeightDisplay(matrices=weight.matrices, shape=weight.shape, layer=weight.layer)
    assert copy.plot().figure_ is not weight.figure_
    assert np.array_equal(copy.images_[1].get_array(), weight.images_[1].get_array())


def test_images_share_colours_that_are_symmetric(pair):
    pair["smooth"][4].weight.data *= 1e-3
    normalized = WeightDisplay.from_models(pair, "4")
    plain, smooth = (image.get_array() for image in normalized.images_)
    assert {image.get_interpolation() for image in normalized.images_} == {"nearest"}
    assert np.square(plain).mean() == pytest.approx(1, rel=1e-5)
    assert np.square(smooth).mean() == pytest.approx(1, rel=1e-5)
    absolute = normalized.plot(normalize=False)
    for image, matrix in zip(absolute.images_, absolute.matrices.values(), strict=True):
        assert np.array_equal(image.get_array(), matrix)
    for display in (normalized, absolute):
        (low, high) = {image.get_clim() for image in display.images_}.pop()
        assert low == -high
    limits = absolute.plot(limit=0.5, im_kw={"alpha": 0.5}, colorbar=False)
    assert limits.images_[0].get_clim() == (-0.5, 0.5)
    assert limits.images_[0].get_alpha() == 0.5
    assert limits.colorbar_ is None


@pytest.mark.parametrize(("scheme", "ylabel", "xlabel"), [
    ("output", "output channel", "input channel x kernel"),
    ("input", "output channel x kernel", "input channel"),
    ("spatial", "output channel x kernel", "input channel x kernel"),
])  # fmt: skip
def test_axes_of_an_image_count_channels(model, scheme, ylabel, xlabel):
    display = WeightDisplay.from_model(model, "2", scheme=scheme)
    (axes,) = display.axes_
    assert (axes.get_ylabel(), axes.get_xlabel()) == (ylabel, xlabel)
    assert (axes.get_ylim(), axes.get_xlim()) == ((7.5, -0.5), (-0.5, 3.5))
    assert axes.get_title() == "2  (8 x 4 x 3 x 3)"


def test_weights_without_a_model():
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    display = WeightDisplay.from_weight(array, name="mine", normalize=False)
    assert np.array_equal(display.images_[0].get_array(), array)
    assert display.axes_[0].get_title() == "mine  (2 x 3)"
    tensor = torch.ones(2, 3, 5, requires_grad=True)
    assert WeightDisplay.from_weight(tensor, scheme="input").matrices["weight"].shape == (10, 3)


@pytest.mark.filterwarnings("error")
def test_awkward_weights_are_drawn_without_a_warning():
    awkward = nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 9), nn.Linear(1, 1), nn.Linear(3, 4))
    awkward[3].weight.data.zero_()
    display = SpectrumDisplay.from_model(awkward)
    for kind in ("values", "energy", "parameters"):
        display.plot(kind=kind).figure_.canvas.draw()
    for name in "0123":
        WeightDisplay.from_model(awkward, name).figure_.canvas.draw()


def overlaps(display) -> list[tuple[str, str]]:
    """Pairs of axes of which, labels and legends included, one covers part of the other."""
    display.figure_.canvas.draw()
    boxes = [
        (axes.get_title(), axes.get_tightbbox())
        for axes in display.figure_.axes
        if axes.axison or axes.get_legend() or axes.texts
    ]
    return [
        (one, other)
        for (one, a), (other, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


@pytest.mark.parametrize("n_layers", [1, 2, 7])
def test_nothing_overlaps_in_a_new_figure(n_layers):
    models = {"plain": deep(n_layers), "trained with a smoothness penalty": deep(n_layers)}
    assert not overlaps(SpectrumDisplay.from_models(models))
    assert not overlaps(WeightDisplay.from_models(models, "0"))


# --- where it is drawn -----------------------------------------------------------------


@pytest.mark.parametrize("layout", ["constrained", None])
def test_one_axes_gives_its_place_to_the_panels(pair, layout):
    figure = Figure(figsize=(12, 5), layout=layout)
    left, right = figure.subplots(1, 2)
    for display in (
        SpectrumDisplay.from_models(pair, ax=left),
        WeightDisplay.from_models(pair, "4", ax=right, colorbar=False),
    ):
        assert display.figure_ is figure
        assert not overlaps(display)
        middle = figure.bbox.width / 2
        inside = [axes.bbox.x1 < middle for axes in display.axes_]
        assert inside == [isinstance(display, SpectrumDisplay)] * len(inside)
    assert not plt.get_fignums()


def test_one_panel_is_drawn_into_the_axes_itself(model):
    figure = Figure()
    given = figure.subplots(1, 3)
    displays = (
        SpectrumDisplay.from_model(model, layers="0", ax=given[0]),
        SpectrumDisplay.from_model(model, kind="parameters", ax=given[1]),
        WeightDisplay.from_model(model, "0", ax=given[2], colorbar=False),
    )
    assert [display.axes_.tolist() for display in displays] == [[axes] for axes in given]
    assert figure.axes == given.tolist()
    assert not plt.get_fignums()


def test_an_axes_for_each_panel(model, pair):
    given = Figure(figsize=(9, 6)).subplots(3, 1)
    display = SpectrumDisplay.from_model(model, ax=given)
    assert display.axes_.tolist() == given.tolist()
    assert SpectrumDisplay.from_model(model, ax=display.axes_).axes_.tolist() == given.tolist()
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in given)
    beside = Figure().subplots(1, 2)
    assert WeightDisplay.from_models(pair, "0", ax=list(beside)).axes_.tolist() == beside.tolist()
    assert not plt.get_fignums()


def test_axes_that_will_not_do(model):
    figure = Figure()
    with pytest.raises(ValueError, match=r"ax of SpectrumDisplay.*3 of them.*got 2 of them"):
        SpectrumDisplay.from_model(model, ax=figure.subplots(1, 2))
    with pytest.raises(ValueError, match="got an object of type str"):
        SpectrumDisplay.from_model(model, ax="left")
    used = figure.subplots()
    SpectrumDisplay.from_model(model, ax=used)
    with pytest.raises(ValueError, match="into 3 panels, for it is switched off"):
        SpectrumDisplay.from_model(model, ax=used)
    with pytest.raises(ValueError, match="not part of a grid"):
        SpectrumDisplay.from_model(model, ax=figure.add_axes((0.1, 0.1, 0.5, 0.5)))


# --- models that stay as they are, and errors ------------------------------------------


def test_models_and_random_state_are_untouched(pair):
    for model in pair.values():
        model.train()
        model[1].eval()
        model[0].register_forward_hook(lambda *_: None)
    before = {label: snapshot(model) for label, model in pair.items()}
    state = torch.get_rng_state()
    SpectrumDisplay.from_models(pair)
    WeightDisplay.from_models(pair, "0")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()
    for label, model in pair.items():
        check_untouched(label, model, before[label])


def test_without_matplotlib_it_names_the_extra_before_it_computes(model, monkeypatch):
    display = SpectrumDisplay.from_model(model)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    nothing = nn.ReLU()
    for call in (
        display.plot,
        lambda: SpectrumDisplay.from_model(nothing),
        lambda: WeightDisplay.from_model(nothing, "0"),
        lambda: WeightDisplay.from_weight(torch.zeros(3)),
    ):
        with pytest.raises(ImportError, match=r"Display\.\w+ needs .* pip install 'skcompress\[pl"):
            call()


def test_models_that_differ(pair):
    pair["smooth"][4] = nn.Linear(32, 10, bias=False)
    shapes = r"layer '4' of model 'plain' has a weight \(12, 32\), and one \(10, 32\) in model 'smo"
    with pytest.raises(ModelMismatchError, match=shapes):
        SpectrumDisplay.from_models(pair)
    with pytest.raises(ModelMismatchError, match=shapes):
        WeightDisplay.from_models(pair, "4")
    assert SpectrumDisplay.from_models(pair, exclude="4").lines_.shape == (2, 2)
    pair["smooth"].append(nn.Linear(10, 10))
    with pytest.raises(ModelMismatchError, match="layer '5' of model 'smooth' does not exist in"):
        SpectrumDisplay.from_models(pair, exclude="4")
    small = SVDCompressor(rank=2, layers="4").fit_transform(pair["plain"])
    with pytest.raises(ModelMismatchError, match=r"'4' .* is left out \(already factorised\) in "):
        SpectrumDisplay.from_models({"plain": pair["plain"], "small": small})


def test_models_without_a_layer_to_draw(model):
    with pytest.raises(NoLayerError, match="SpectrumDisplay found no layer"):
        SpectrumDisplay.from_model(nn.ReLU())
    model.append(nn.BatchNorm1d(12))
    with pytest.raises(SelectionError, match=r"layer='5' .*vectors only: nothing to factorise$"):
        WeightDisplay.from_model(model, "5")
    small = SVDCompressor(rank=1).fit_transform(nn.Sequential(nn.Linear(9, 9)))
    with pytest.raises(NoLayerError, match="0: already factorised"):
        SpectrumDisplay.from_model(small)


@pytest.mark.parametrize("draw", [
    SpectrumDisplay.from_model, lambda model: WeightDisplay.from_model(model, "4"),
])  # fmt: skip
def test_weights_without_usable_values(draw, model):
    model[4].to("meta")
    with pytest.raises(MetaWeightError, match="'4'"):
        draw(model)
    broken = network()
    broken[4].weight.data[0, :3] = torch.nan
    with pytest.raises(NonFiniteWeightError, match=r"'4' has 3 NaN .* \(12, 32\)"):
        draw(broken)
    assert not plt.get_fignums()


def test_unsuitable_arguments(model, pair):
    with pytest.raises(ModelTypeError, match="SpectrumDisplay takes a torch"):
        SpectrumDisplay.from_model(np.zeros((3, 3)))
    with pytest.raises(TypeError, match=r"models of SpectrumDisplay must be a dict.*got list"):
        SpectrumDisplay.from_models(list(pair.values()))
    with pytest.raises(ValueError, match="got an empty dict"):
        WeightDisplay.from_models({}, "0")
    with pytest.raises(SelectionError, match="layers='7'"):
        SpectrumDisplay.from_model(model, layers="7")
    with pytest.raises(SelectionError, match="layer='7'"):
        WeightDisplay.from_model(model, "7")
    with pytest.raises(ValueError, match=r"layer='\*' of WeightDisplay .* 3 weights: .*'2'"):
        WeightDisplay.from_model(model, "*")
    with pytest.raises(ValueError, match=r"\(out, in, \*kernel\).*got \(3,\)"):
        WeightDisplay.from_weight(torch.zeros(3))
    with pytest.raises(ValueError, match="2 NaN or infinite"):
        WeightDisplay.from_weight([[1.0, np.inf, np.nan]])
    assert not plt.get_fignums()


@pytest.mark.parametrize("arguments", [
    {"kind": "lines"}, {"energy": 0}, {"energy": 1.1}, {"max_layers": 0}, {"line_kw": "red"},
    {"scheme": "diagonal"},
])  # fmt: skip
def test_bad_parameters_name_themselves(model, arguments):
    (name,) = arguments
    with pytest.raises(InvalidParameterError, match=f"'{name}' parameter of SpectrumDisplay"):
        SpectrumDisplay.from_model(model, **arguments)


@pytest.mark.parametrize("arguments", [
    {"limit": 0}, {"normalize": "yes"}, {"im_kw": 3}, {"colorbar": 2}, {"scheme": "diagonal"},
])  # fmt: skip
def test_bad_parameters_of_an_image_name_themselves(model, arguments):
    (name,) = arguments
    with pytest.raises(InvalidParameterError, match=f"'{name}' parameter of WeightDisplay"):
        WeightDisplay.from_model(model, "0", **arguments)
