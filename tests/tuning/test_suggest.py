"""Parameters that a trial chooses fit the estimator, whatever is nested in it."""

from __future__ import annotations

import optuna
import pytest
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from skcompress import LowRankCompressor, NuclearNorm, SVDCompressor, TuckerCompressor, registry
from skcompress.errors import (
    EstimatorTypeError,
    NothingToSearchError,
    SearchDeclarationError,
    SearchRangeError,
    UnknownParameterError,
)
from skcompress.protocols import Decomposition
from skcompress.spaces import FloatRange, IntRange, Options, Plugins
from skcompress.tuning import suggest_estimator, suggest_params

NEED_DATA = {"fold_norm", "metric", "reconstruction", "refit_dense", "sensitivity"}


class Recorder:
    """A trial that takes the last choice and the upper end, and keeps what it was asked."""

    def __init__(self, **chosen):
        self.asked, self.chosen = {}, chosen

    def suggest_float(self, name, low, high, *, log=False):
        self.asked[name] = FloatRange(low, high, log)
        return self.chosen.get(name, high)

    def suggest_int(self, name, low, high, *, log=False):
        self.asked[name] = IntRange(low, high, log)
        return self.chosen.get(name, high)

    def suggest_categorical(self, name, choices):
        self.asked[name] = list(choices)
        return self.chosen.get(name, choices[-1])


def names_of(estimator, **arguments):
    trial = Recorder()
    suggest_params(trial, estimator, **arguments)
    return list(trial.asked)


def test_the_promised_line():
    trial = optuna.create_study().ask()
    compressor = SVDCompressor().set_params(**suggest_params(trial, SVDCompressor()))
    assert compressor.get_params().items() >= trial.params.items()
    assert list(trial.params) == ["allocation", "pivot", "rank", "scheme"]


def test_names_are_sorted_whatever_the_sampler_draws():
    for seed in range(5):
        sampler = optuna.samplers.RandomSampler(seed=seed)
        trial = optuna.create_study(sampler=sampler).ask()
        suggest_params(trial, LowRankCompressor())
        assert list(trial.params) == sorted(trial.params)


def test_the_same_seed_gives_the_same_parameters():
    def drawn():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
        return [repr(suggest_params(study.ask(), LowRankCompressor())) for _ in range(4)]

    assert drawn() == drawn()


def test_what_needs_data_is_searched_with_data_only():
    assert not NEED_DATA & set(names_of(SVDCompressor()))
    assert set(names_of(SVDCompressor(), with_data=True)) >= NEED_DATA


class Fussy(SVDCompressor):
    """Lets its allocation be chosen only where there is data."""

    search_space = {  # noqa: RUF012
        "allocation": Options({"svd": LowRankCompressor(), "tucker": "tucker"}, needs_data=True)
    }


def test_nor_is_what_hangs_on_a_choice_that_needs_data():
    assert names_of(Fussy(), override={"scheme": "auto"}) == ["pivot", "rank"]
    assert names_of(Fussy(), with_data=True)[0] == "allocation"


def test_the_estimator_stays_as_it_was():
    compressor = LowRankCompressor(decomposition=registry.make("decompositions", "svd"))
    before = repr(compressor)
    suggest_params(Recorder(), compressor)
    drawn = suggest_params(Recorder(), compressor, only="decomposition__*")
    assert drawn == {"decomposition__unfolding": "input"}
    assert repr(compressor) == before


def test_a_plugin_with_parameters_of_its_own_comes_as_an_instance():
    trial = Recorder(decomposition="svd")
    drawn = suggest_params(trial, LowRankCompressor(), only="decomposition*")
    assert isinstance(drawn["decomposition"], registry.resolve("decompositions", "svd"))
    assert drawn["decomposition"].unfolding == "input"
    assert list(trial.asked) == ["decomposition", "decomposition.svd.unfolding"]


def test_a_plugin_without_any_comes_as_its_name():
    drawn = suggest_params(Recorder(decomposition="tucker"), LowRankCompressor())
    assert drawn["decomposition"] == "tucker"


def test_only_the_choice_of_a_plugin():
    trial = Recorder(decomposition="svd")
    drawn = suggest_params(trial, LowRankCompressor(), only=["decomposition"])
    assert list(trial.asked) == ["decomposition"]
    assert drawn == {"decomposition": "svd"}


def test_a_parameter_of_one_choice_brings_the_choice_with_it():
    only = ["decomposition.svd.unfolding"]
    assert names_of(LowRankCompressor(), only=only) == ["decomposition"]
    trial = Recorder(decomposition="svd")
    suggest_params(trial, LowRankCompressor(), only=only)
    assert list(trial.asked) == ["decomposition", *only]


def test_parameters_of_the_plugin_that_is_there():
    for decomposition in ("svd", registry.make("decompositions", "svd")):
        compressor = LowRankCompressor(decomposition=decomposition)
        drawn = suggest_params(Recorder(), compressor, only="decomposition__unfolding")
        changed = clone(compressor).set_params(**drawn)
        assert changed.decomposition.unfolding == "input"


def test_pipelines_have_the_names_of_their_steps():
    pipeline = Pipeline([("first", SVDCompressor()), ("second", TuckerCompressor(rank=0.2))])
    trial = Recorder()
    drawn = suggest_params(trial, pipeline, only="*rank")
    assert list(trial.asked) == ["first__rank", "second__rank"]
    assert clone(pipeline).set_params(**drawn)["second"].rank == drawn["second__rank"]


def test_a_step_may_be_one_of_several_estimators():
    pipeline = Pipeline([("small", SVDCompressor())])
    steps = Options({"svd": SVDCompressor(), "tucker": TuckerCompressor(), "no": "passthrough"})
    arguments = {"only": "*.rank", "override": {"small": steps}}
    for label, kind in (("svd", SVDCompressor), ("tucker", TuckerCompressor), ("no", str)):
        trial = Recorder(small=label)
        drawn = suggest_params(trial, pipeline, **arguments)
        assert isinstance(clone(pipeline).set_params(**drawn)["small"], kind) or label == "no"
        assert isinstance(drawn["small"], kind)
        assert list(trial.asked) == ["small", f"small.{label}.rank"][: 1 if label == "no" else 2]


def test_one_of_several_estimators():
    estimators = {"svd": SVDCompressor(verbose=True), "tucker": TuckerCompressor()}
    trial = Recorder(estimator="svd")
    found = suggest_estimator(trial, estimators, only="*rank")
    assert repr(found) == repr(SVDCompressor(rank=0.9, verbose=True))
    assert list(trial.asked) == ["estimator", "estimator.svd.rank"]
    assert estimators["svd"].rank == 0.3
    assert isinstance(
        suggest_estimator(Recorder(), TuckerCompressor(), only="rank"), TuckerCompressor
    )


def test_prefixes_are_of_the_study_only():
    trial = Recorder()
    drawn = suggest_params(trial, SVDCompressor(), "first.", only="rank")
    assert list(trial.asked) == ["first.rank"]
    assert drawn == {"rank": 0.9}


# --- override -------------------------------------------------------------------------


def test_ranges_choices_and_values():
    override = {
        "rank": FloatRange(0.2, 0.4),
        "scheme": ["output", "input"],
        "allocation": "uniform",
        "exclude": ("head",),
    }
    trial = Recorder()
    drawn = suggest_params(trial, SVDCompressor(), override=override)
    assert trial.asked == {
        "pivot": [False, True],
        "rank": FloatRange(0.2, 0.4),
        "scheme": ["output", "input"],
    }
    assert drawn["allocation"] == "uniform"
    assert drawn["exclude"] == ("head",)


def test_a_pattern_changes_all_that_it_fits():
    pipeline = Pipeline([("first", SVDCompressor()), ("second", TuckerCompressor())])
    trial = Recorder()
    suggest_params(trial, pipeline, only="*rank", override={"*rank": FloatRange(0.2, 0.4)})
    assert trial.asked == dict.fromkeys(["first__rank", "second__rank"], FloatRange(0.2, 0.4))


def test_what_is_named_in_full_needs_not_be_in_only():
    override = {"max_positions": IntRange(10, 1000, log=True), "metric": ["weights"]}
    asked = names_of(SVDCompressor(), only="rank", override=override)
    assert asked == ["max_positions", "metric", "rank"]


def test_names_of_plugins_bring_their_parameters():
    override = {"decomposition": ["tucker", "svd"]}
    trial = Recorder()
    drawn = suggest_params(trial, LowRankCompressor(), only="decomposition*", override=override)
    assert trial.asked["decomposition"] == ["tucker", "svd"]
    assert drawn["decomposition"].unfolding == "input"


def test_a_value_for_a_plugin_leaves_its_parameters_to_be_searched():
    override = {"decomposition": registry.make("decompositions", "svd")}
    only = ["decomposition__unfolding"]
    drawn = suggest_params(Recorder(), LowRankCompressor(), only=only, override=override)
    changed = LowRankCompressor().set_params(**drawn)
    assert changed.decomposition.unfolding == "input"
    assert override["decomposition"].unfolding == "output"


def test_a_rank_for_each_group_of_layers_in_the_order_given():
    groups = {"stage2.*": FloatRange(0.1, 0.5), "stage1.*": FloatRange(0.4, 0.9), "*": 0.5}
    trial = Recorder()
    drawn = suggest_params(trial, SVDCompressor(), only="rank", override={"rank": groups})
    assert list(trial.asked) == ["rank.stage1.*", "rank.stage2.*"]
    assert list(drawn["rank"].items()) == [("stage2.*", 0.5), ("stage1.*", 0.9), ("*", 0.5)]


def test_plugins_of_another_kind_may_be_asked_for():
    override = {"decomposition": Plugins("decompositions", leave_out=("svd",))}
    trial = Recorder()
    suggest_params(trial, LowRankCompressor(), only=[], override=override)
    expected = [n for n in registry.names("decompositions") if n != "svd"]
    assert trial.asked["decomposition"] == expected


# --- bad input ------------------------------------------------------------------------


class Chatty(Decomposition):
    """Declares what it has not."""

    search_space = {"verbosity": IntRange(0, 3)}  # noqa: RUF012

    def factorize(self, weight):
        raise NotImplementedError

    def stages(self, shape, rank):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"only": "rnk"}, UnknownParameterError, "only has 'rnk', .* did you mean 'rank'?"),
        ({"only": ["rank", "*_x"]}, UnknownParameterError, r"only has '\*_x', which fits no"),
        ({"only": "metric"}, UnknownParameterError, "needs data: pass with_data=True"),
        ({"override": {"rnk": 1}}, UnknownParameterError, "override has 'rnk', .*SVDCompressor"),
        ({"override": [("rank", 1)]}, SearchRangeError, "override of suggest_params must be a map"),
        (
            {"override": {"rank": optuna.distributions.FloatDistribution(0, 1)}},
            SearchRangeError,
            r"override\['rank'\] of suggest_params must be a range of skcompress.spaces",
        ),
        ({"override": {"rank": [0.1, (1, 2)]}}, SearchRangeError, "for a study to store"),
        ({"override": {"allocation": ["glob"]}}, ValueError, "did you mean 'global'"),
        ({"only": []}, NothingToSearchError, "SVDCompressor declares nothing to search"),
    ],
)
def test_what_fits_nothing(arguments, error, message):
    trial = Recorder()
    with pytest.raises(error, match=message):
        suggest_params(trial, SVDCompressor(), **arguments)
    assert not trial.asked


def test_estimators_that_are_none():
    with pytest.raises(EstimatorTypeError, match="the class SVDCompressor: pass an instance"):
        suggest_params(Recorder(), SVDCompressor)
    with pytest.raises(EstimatorTypeError, match="suggest_estimator chooses between several"):
        suggest_params(Recorder(), {"svd": SVDCompressor()})
    with pytest.raises(EstimatorTypeError, match="got an object of type str"):
        suggest_estimator(Recorder(), {"svd": "svd"})


def test_declarations_of_nothing_and_of_what_is_not_there():
    with pytest.raises(NothingToSearchError, match="Uniform declares nothing to search"):
        suggest_params(Recorder(), registry.make("allocations", "uniform"))
    with pytest.raises(SearchDeclarationError, match="'verbosity' is no parameter of Chatty"):
        suggest_params(Recorder(), Chatty())


def test_finished_trials_give_what_they_had():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    drawn = suggest_params(trial, NuclearNorm())
    study.tell(trial, 1.0)
    assert suggest_params(study.best_trial, NuclearNorm()) == drawn
    assert suggest_params(optuna.trial.FixedTrial(trial.params), NuclearNorm()) == drawn
