"""A study goes on with the space it began with, or says what has changed."""

from __future__ import annotations

import multiprocessing

import optuna
import pytest

from skcompress import LowRankCompressor, SVDCompressor, registry
from skcompress.decompositions.svd import SVD
from skcompress.errors import SpaceChangedError
from skcompress.spaces import FloatRange
from skcompress.tuning import suggest_params


class NewSVD(SVD):
    """A plugin that is installed later."""


@pytest.fixture
def install(monkeypatch):
    """Make plugins appear (class) and disappear (None), as installing them does."""
    names, resolve = registry.names, registry.resolve
    changed = {}

    def known(kind):
        found = set(names(kind))
        if kind == "decompositions":
            found |= {n for n, c in changed.items() if c}
            found -= {n for n, c in changed.items() if not c}
        return sorted(found)

    def found(kind, name):
        return changed.get(name) or resolve(kind, name) if isinstance(name, str) else name

    monkeypatch.setattr(registry, "names", known)
    monkeypatch.setattr(registry, "resolve", found)
    return lambda **plugins: changed.update(plugins)


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def opened(storage, seed=0):
    sampler = optuna.samplers.RandomSampler(seed=seed)
    return optuna.create_study(
        storage=storage, study_name="s", sampler=sampler, load_if_exists=True
    )


def run(study, n=1, estimator=None, **arguments):
    for _ in range(n):
        trial = study.ask()
        suggest_params(trial, estimator or LowRankCompressor(), **arguments)
        study.tell(trial, 0.0)


def choices(study):
    drawn = [t.distributions for t in study.trials if t.distributions]
    return {tuple(distributions["decomposition"].choices) for distributions in drawn}


def test_the_first_trial_writes_the_space(storage):
    run(opened(storage), estimator=SVDCompressor(), only=["rank", "pivot"])
    known = opened(storage).user_attrs["search_space"]
    assert known == {"pivot": {"choices": [False, True]}, "rank": {"float": [0.1, 0.9]}}


def test_each_prefix_has_a_space_of_its_own():
    study = optuna.create_study()
    trial = study.ask()
    suggest_params(trial, SVDCompressor(), "a.", only="rank")
    suggest_params(trial, SVDCompressor(), "b.", only="scheme")
    assert study.user_attrs.keys() == {"search_space:a.", "search_space:b."}
    with pytest.raises(SpaceChangedError, match=r"'rank' .*'scheme' is new .*prefix= of its own"):
        suggest_params(trial, SVDCompressor(), "a.", only="scheme")


def test_a_newly_installed_plugin_does_not_change_a_running_study(storage, install):
    run(opened(storage), 3)
    before = choices(opened(storage))
    install(new=NewSVD)
    run(opened(storage, seed=1), 20)
    assert choices(opened(storage)) == before
    assert len(opened(storage).trials) == 23
    fresh = optuna.create_study()
    run(fresh)
    assert choices(fresh) == {tuple(registry.names("decompositions"))}
    assert "new" in registry.names("decompositions")


def test_a_removed_plugin_is_named(storage, install):
    install(new=NewSVD)
    run(opened(storage), 3)
    install(new=None)
    study = opened(storage)
    message = "study 's' began with: 'decomposition' could be 'new', which it cannot now"
    with pytest.raises(SpaceChangedError, match=message):
        run(study)
    assert choices(study) == {tuple(sorted([*registry.names("decompositions"), "new"]))}


def test_plugins_that_were_listed_are_not_made_up_for(storage):
    run(opened(storage), override={"decomposition": ["svd", "tucker"]})
    message = "'decomposition' was one of 'svd', 'tucker', is one of 'svd', 'tucker', 'spatial_svd'"
    with pytest.raises(SpaceChangedError, match=message):
        run(opened(storage), override={"decomposition": ["svd", "tucker", "spatial_svd"]})


def test_another_range_is_named(storage):
    run(opened(storage), only="rank")
    message = "'rank' was float 0.1 to 0.9, is float 0.1 to 0.5"
    with pytest.raises(SpaceChangedError, match=message):
        run(opened(storage), only="rank", override={"rank": FloatRange(0.1, 0.5)})
    with pytest.raises(SpaceChangedError, match=r"'pivot' is new \(one of False, True\)"):
        run(opened(storage), only=["rank", "pivot"])
    with pytest.raises(SpaceChangedError, match=r"'rank' \(float 0.1 to 0.9\) is missing"):
        run(opened(storage), only="pivot")


def test_finished_trials_know_their_choices(install):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    run(study)
    install(new=NewSVD)
    drawn = suggest_params(study.best_trial, LowRankCompressor())
    assert LowRankCompressor().set_params(**drawn).rank == study.best_trial.params["rank"]


def test_processes_that_begin_at_once_with_different_plugins(storage, install, monkeypatch):
    """The one that has written the space last is not the one that drew first."""
    first = opened(storage)
    trial = first.ask()
    write = optuna.Study.set_user_attr

    def overtaken(study, key, value):
        # The other process has seen no space either, and draws before we write ours.
        monkeypatch.setattr(optuna.Study, "set_user_attr", write)
        install(new=None)
        run(opened(storage))
        install(new=NewSVD)
        write(study, key, value)

    install(new=NewSVD)
    monkeypatch.setattr(optuna.Study, "set_user_attr", overtaken)
    suggest_params(trial, LowRankCompressor())
    first.tell(trial, 0.0)
    run(opened(storage), 2)
    install(new=None)
    run(opened(storage), 2)
    assert choices(opened(storage)) == {tuple(registry.names("decompositions"))}
    assert len(opened(storage).trials) == 6


def _work(storage, seed):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run(opened(storage, seed), 5)


def test_processes_that_begin_at_once(storage):
    opened(storage)  # SQLite itself fails where two processes make the file's tables at once
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(storage, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    study = opened(storage)
    assert sorted(t.number for t in study.trials) == list(range(10))
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials)
    assert len(choices(study)) == 1
