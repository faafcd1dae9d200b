"""What is drawn from any plugin's search space works."""

from __future__ import annotations

import optuna
import pytest
from sklearn.base import clone

from skcompress import metrics, registry
from skcompress.errors import BudgetError, NothingToSearchError
from skcompress.testing import small_models
from skcompress.tuning import suggest_params

# A kind of layer is no estimator: nothing of it is searched.
SEARCHED = [kind for kind in registry.KINDS if kind != "layers"]
EVERYTHING = [(kind, name) for kind in SEARCHED for name in registry.names(kind)]


def drawn(plugin, n, **arguments):
    """Give n clones with what a random sampler draws; none where nothing is declared."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(n):
        trial = study.ask()
        try:
            params = suggest_params(trial, plugin, **arguments)
        except NothingToSearchError:
            return
        assert list(trial.params) == sorted(trial.params)
        yield trial, clone(plugin).set_params(**params)


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_what_is_drawn_is_set(kind, name):
    plugin = registry.make(kind, name)
    before = repr(plugin)
    for trial, changed in drawn(plugin, 10, with_data=True):
        again = suggest_params(optuna.trial.FixedTrial(trial.params), plugin, with_data=True)
        assert repr(clone(plugin).set_params(**again)) == repr(clone(changed))
    assert repr(plugin) == before


def ours(kind):
    """Registered by this package; some plugins cannot do without data."""
    home = {n: registry.resolve(kind, n).__module__ for n in registry.names(kind)}
    return [name for name, module in home.items() if module.startswith("skcompress.")]


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("name", ours("compressors"))
def test_what_is_drawn_compresses(name, with_data):
    _, model, (inputs,) = next(m for m in small_models() if m[0] == "convolutional")
    arguments = {"with_data": with_data, "override": {"decomposition.cp.*": 4}}
    if name != "low_rank" or "cp" not in registry.names("decompositions"):
        del arguments["override"]
    n_reached = 0
    for _, compressor in drawn(registry.make("compressors", name), 12, **arguments):
        try:
            small = compressor.fit_transform(model, inputs if with_data else None)
        except BudgetError:
            continue
        n_reached += 1
        assert metrics.count_parameters(small) <= metrics.count_parameters(model)
        assert small(inputs).shape == model(inputs).shape
    assert n_reached > 2
