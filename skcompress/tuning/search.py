"""Searching parameters of compression, and of training before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..errors import CalibrationError, NoCompressorError
from ..fitting.memo import Memo
from ..network.batches import device_of
from ..network.weights import check_model
from ..protocols import Bench, Compressor, Objective
from ..randomness import restored_randomness, same_randomness
from .candidates import Candidates, candidates, trains
from .choosing import chosen, completed_rows, front_of
from .constraints import Constraint, parse_all
from .evaluation import Evaluation
from .gate import Gate
from .identity import described
from .measuring import Meter, example_of, objectives_of, written
from .progress import quiet
from .running import dense_measurement, prunes_by_score, run
from .scoring import make_scorer
from .settings import RULES
from .storage import grace_of, open_storage
from .studies import begin, open_study
from .training import Training, first_batch, training_pair
from .trials import TrialTable


class CompressionSearch(Compressor):
    """Searches parameters with Optuna, of compression and training: keeps the best compromises.

    Parameters
    ----------
    estimator : estimator, str, or several
        What compresses: a compressor, a `Pipeline` of them, or a registered name. What trains
        first: a `SmoothClassifier` or `SmoothRegressor` without `module`, with a compressor
        inside, or as first step of a Pipeline with compressors behind it. A list, or a mapping
        of label -> estimator: the choice between them is searched too.
    space : None, names, or mapping
        What is searched. None: all that the estimators declare. Names or glob patterns: those
        only. A mapping of name -> range (`skcompress.spaces`), list of choices, or fixed value:
        exactly these; `...` stands for what is declared. A rank for groups of layers is
        ``{"rank": {"body": FloatRange(0.1, 0.9), "head": FloatRange(0.1, 0.5)}}``.
    scoring : callable or str
        ``(model) -> float``, more is better; or ``(model, trial) -> float``, which may report
        to the trial and prune it. Or the name of a scikit-learn scorer, for the arrays
        `validation` of `fit`. The model is in eval mode, a copy; with `n_jobs` several threads
        call it at a time. None where no objective and no constraint is about the score.
    objectives : str, `protocols.Objective`, or tuple of these
        Registered names or instances: "score", "n_parameters", "flops" (of one forward of the first
        input), "bytes", "latency" (seconds of that forward), and what plugins add. One is made
        best; of several, the best compromises are found. These five are measured in any case, as
        far as there are inputs and a scorer; latency, where it is an objective or in a constraint,
        while no other trial of this process computes.
    n_trials : int or None
        How many finished trials the study is to have in the end, those that were there before
        and those of other processes among them. None: until `timeout`.
    timeout : float or None
        Seconds after which no further trial begins.
    sampler : {"tpe", "nsgaii", "random"}, Optuna sampler or None
        Draws the parameters; None for "tpe".
    pruner : Optuna pruner or None
        Stops trials that `scoring` reports on, with one objective; None for the median of
        others. Where the estimator trains and "score" is the objective, what the network would
        score, compressed, is reported after each epoch, unless `scoring` reports by itself or
        this is a `NopPruner`.
    storage : str, Optuna storage or None
        Where the study is kept, see `tuning.storage.open_storage`: in memory, or by a URL in a
        database such as "sqlite:///study.db" or "postgresql://host/name", which other processes
        and machines may work on too.
    study_name : str or None
        With a storage, the study of that name goes on where it stopped.
    n_jobs : int or None
        Threads; each carries out a trial.
    random_state : int, RandomState or None
        An int: the same study each time, with one thread. It seeds the sampler (of a name) and
        all compressors that leave theirs None. Processes that share a study need different ones.
    refit : {"best", "knee"} or callable
        Which of `pareto_front_` `best_model_` is built of: the best by the first objective; the
        one where the front bulges out most; or the index that ``(front) -> int`` gives.
    constraints : str or tuple
        What results have to meet: "score >= dense - 0.01", "n_parameters <= 0.3 * dense",
        "latency <= 0.002"; or a pair of an instance and the rest, (MyObjective(), "<= 3"). `dense`
        is what the uncompressed model has.
    cache_memory : float, default=2 GiB
        Bytes for what trials have in common: factorisations of weights, statistics of inputs,
        trained networks with their optimizers. Computed once, and let go at the end of `fit`.
        A trial whose settings of the training are those of an earlier one does not train; the
        chosen one trains again, with its `random_state`, if its network is not kept.
    verbose : bool or int
        1 shows a progress bar, 2 Optuna's own messages too.

    Attributes
    ----------
    study_ : optuna.Study. User attributes of its trials have all that was measured, of failed
        ones "error".
    pareto_front_ : TrialTable, the trials that meet the constraints and that no other one
        beats, best first by the first objective; prints as a table, `to_pandas()`
    trials_ : TrialTable of all completed trials
    dense_ : Measurement of the uncompressed model; where the estimator trains, of what it
        trains as it was given, before compression
    objectives_ : tuple of str, the names of what was searched for
    constraints_ : tuple of Constraint, as they were understood
    best_trial_ : Row of `pareto_front_` that was chosen
    best_params_ : dict, what was set on the estimator; of several, {"estimator": it}
    best_estimator_ : the estimator with these, fitted; a `SmoothClassifier` predicts
    best_compressor_ : what compresses in it, fitted: the same where nothing is trained; None
        where nothing compresses
    best_dense_model_ : the trained network that was compressed, where the estimator trains
    best_model_ : torch.nn.Module

    Examples
    --------
    >>> from torch import nn
    >>> from skcompress import SVDCompressor
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> inputs = torch.randn(100, 64)
    >>> def agreement(small):
    ...     return float((small(inputs).argmax(1) == model(inputs).argmax(1)).float().mean())
    >>> search = CompressionSearch(SVDCompressor(), "rank", scoring=agreement, n_trials=5,
    ...                            random_state=0).fit(model)
    >>> search.best_trial_.found.n_parameters < search.dense_.n_parameters
    True

    Raises
    ------
    UnknownNameError, ConstraintError : an objective or a constraint that is none
    MissingValidationError, MissingDataError, TrainingDataError : what a setting needs, and is
        not there
    DenseScoreError : `scoring` fails for the uncompressed model already
    StorageError, StudyMismatchError, SpaceChangedError : a study that cannot be opened, or was
        begun with something else
    FailedTrialsError : no trial gave a result
    UnsatisfiedConstraintError : none meets the constraints

    References
    ----------
    Akiba et al. 2019, arXiv 1907.10902 (Optuna); Watanabe 2023, arXiv 2304.11127 (TPE); Deb et
    al. 2002, IEEE Trans. Evol. Comput. 6 (NSGA-II).
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = RULES

    def __init__(
        self,
        estimator: Any,
        space: Any = None,
        *,
        scoring: Any,
        objectives: Any = ("score", "n_parameters"),
        n_trials: int | None = 100,
        timeout: float | None = None,
        sampler: Any = None,
        pruner: Any = None,
        storage: Any = None,
        study_name: str | None = None,
        n_jobs: int | None = None,
        random_state: Any = None,
        refit: Any = "best",
        constraints: Any = (),
        cache_memory: float = 2**31,
        verbose: bool | int = False,
    ):
        self.estimator = estimator
        self.space = space
        self.scoring = scoring
        self.objectives = objectives
        self.n_trials = n_trials
        self.timeout = timeout
        self.sampler = sampler
        self.pruner = pruner
        self.storage = storage
        self.study_name = study_name
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.refit = refit
        self.constraints = constraints
        self.cache_memory = cache_memory
        self.verbose = verbose

    def fit(
        self,
        model: nn.Module,
        data: object = None,
        validation: object = None,
        calibration: object = None,
    ) -> CompressionSearch:
        """Search, and build the chosen compromise; `model` stays as it is.

        model : the network to compress; where the estimator trains, the one whose weights
            every training begins with
        data : unlabelled inputs that the compressors are fitted with, as they take it. Where the
            estimator trains: what it trains on, (inputs, targets) as `SmoothClassifier.fit`
            takes them, or a torch Dataset of such pairs
        validation : (inputs, targets) for a scorer that is given by name
        calibration : where the estimator trains, the unlabelled inputs for its compressors; None
            for the weights alone
        """
        self._validate_params()
        owner = type(self).__name__
        objectives = objectives_of(owner, self.objectives)
        constraints, bounded = parse_all(self.constraints, objectives)
        check_model(owner, model)
        scorer = None
        if self.scoring is not None:
            scorer = make_scorer(owner, self.scoring, validation)
        if self.n_trials is None and self.timeout is None:
            raise InvalidParameterError(
                f"The 'n_trials' parameter of {owner} must be an int where there is no timeout: "
                "the search would never end. Got None instead."
            )
        inputs = validation[0] if isinstance(validation, tuple | list) and validation else None
        pair = None
        sources = [data, inputs]
        if trains(owner, self.estimator):
            pair, data = training_pair(owner, data), calibration
            sources = [calibration, inputs, first_batch(pair[0])]
        elif calibration is not None:
            raise CalibrationError(owner)
        with same_randomness(device_of(model)):  # from which a DataLoader draws
            example = example_of(owner, sources, model)
        bench = Bench(example, validation=validation, data=data)
        meter = Meter.of(owner, objectives | bounded, bench, scorer)
        searched = candidates(owner, self.estimator, self.space, with_data=data is not None)
        with quiet(int(self.verbose)), restored_randomness(device_of(model)):
            self._search(model, data, pair, searched, meter, objectives, constraints)
        return self

    def transform(self, model: nn.Module) -> nn.Module:
        """Compress `model`, the fitted one or a later one, with the chosen compressor."""
        return self._compressor().transform(model)  # type: ignore[no-any-return]

    def fit_transform(  # type: ignore[override]
        self,
        model: nn.Module,
        data: object = None,
        validation: object = None,
        calibration: object = None,
    ) -> nn.Module:
        """`fit`, then `best_model_`."""
        return self.fit(model, data, validation, calibration).best_model_

    def inverse_transform(self, model: nn.Module) -> nn.Module:
        """Give back dense layers, where the chosen compressor can."""
        return self._compressor().inverse_transform(model)  # type: ignore[no-any-return]

    def _compressor(self) -> Any:
        check_is_fitted(self, "best_compressor_")
        if self.best_compressor_ is None:
            raise NoCompressorError(type(self).__name__)
        return self.best_compressor_

    def _search(
        self,
        model: nn.Module,
        data: object,
        pair: tuple[Any, Any] | None,
        searched: Candidates,
        meter: Meter,
        objectives: Mapping[str, Objective],
        constraints: Sequence[Constraint],
    ) -> None:
        seed = None
        if self.random_state is not None:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        storage = open_storage(self.storage)
        study = open_study(
            objectives, sampler=self.sampler or "tpe", pruner=self.pruner, storage=storage,
            name=self.study_name, seed=seed, constrained=bool(constraints),
        )  # fmt: skip
        begin(
            study,
            objectives,
            {
                "objectives": written(self.objectives),
                "constraints": [constraint.text for constraint in constraints],
                "model": described(model),
            },
        )
        searched.require_begun(study)
        self.study_, self.objectives_, self.constraints_ = study, tuple(objectives), constraints
        gate = Gate()
        shared = Memo(self.cache_memory)
        evaluation = Evaluation(
            model=model,
            data=data,
            candidates=searched,
            objectives=objectives,
            constraints=constraints,
            meter=meter,
            gate=gate,
            seed=int(np.random.SeedSequence(seed).generate_state(1)[0]) // 2,
            shared=shared,
            training=None if pair is None else Training(model, *pair, shared),
            watched=prunes_by_score(study, objectives, scorer=meter.scorer),
        )
        self.dense_ = dense_measurement(study, meter, gate, evaluation.uncompressed)
        evaluation.dense = self.dense_
        run(
            study, evaluation, n_trials=self.n_trials, timeout=self.timeout, n_jobs=self.n_jobs,
            verbose=self.verbose, grace=grace_of(storage),
        )  # fmt: skip
        rows = completed_rows(study, meter, evaluation.first_error)
        self.trials_ = TrialTable(rows, self.dense_, meter.objectives)
        front = front_of(rows, objectives, constraints, self.dense_)
        self.pareto_front_ = TrialTable(front, self.dense_, meter.objectives)
        self.best_trial_ = chosen(self.pareto_front_, objectives, self.refit)
        trial = study.trials[self.best_trial_.number]
        _, self.best_params_ = evaluation.estimator(trial)
        best = evaluation.rebuilt(trial)
        self.best_estimator_, self.best_model_ = best.estimator, best.model
        self.best_compressor_ = best.compressor
        if pair is not None:
            self.best_dense_model_ = best.dense
