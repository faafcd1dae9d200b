"""Checkpoints of any size, compressed tensor by tensor from disk to disk."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..errors import CheckpointPlaceError, NonFiniteWeightError, SourceChangedError
from ..fitting.steps import Steps
from ..metrics import count_parameters
from ..network.weights import Site, select
from ..plan import Plan, Report
from ..protocols import Curve
from .streaming_architecture import Architecture, named_tensors
from .streaming_journal import (
    BUDGET,
    CURVES,
    Journal,
    Workplace,
    curve_from_json,
    curve_to_json,
)
from .streaming_layers import Group, groups, leave_absent, with_values
from .streaming_model import write_companions, write_tensors
from .streaming_output import Shards
from .streaming_plan import Work
from .streaming_report import CheckpointReport, Estimate, estimated
from .streaming_source import WHOLE, Source
from .streaming_structure import Contents, replaced_modules

Paths = str | os.PathLike[str]


def compress_checkpoint(
    source: Paths,
    destination: Paths,
    compressor: Any,
    *,
    model: Any = None,
    max_shard_size: int = 5_000_000_000,
    overwrite: bool = False,
    restart: bool = False,
    verbose: bool | int = False,
) -> CheckpointReport:
    """Compress a checkpoint of safetensors on disk, with one weight in memory at a time.

    The result has the tensors that ``compressor.fit_transform(model)`` would have. First the
    errors of every rank of every weight, then one division of the budget over the whole model,
    then the factors: each weight is read and decomposed twice, since all bases at once would
    not fit. Memory: about four times the largest tensor at most, in 16 bits, and what Python,
    torch and transformers take.

    An interrupted run goes on where it was when it is called again with the same arguments; with
    another `rank` or `allocation` it keeps the errors of all ranks, the longer half of the work.
    The destination appears at the end, whole; what was there before stays until then.

    Parameters
    ----------
    source : path of a folder with model.safetensors, or with shards and their index, or of
        one .safetensors file. Is only read.
    destination : path of the new folder, or file, whatever the source is. Files of the source's
        folder that hold no weights are copied along.
    compressor : a low-rank compressor that needs no data, such as `SVDCompressor(rank=0.3)`;
        its `device` says where to compute
    model : function that builds the network, or a module like it; values do not matter. None
        for the class that config.json names, through transformers; without a config.json every
        matrix called `weight` is taken for that of a linear layer, but for embeddings.
    max_shard_size : bytes of values in one file of a folder
    overwrite : whether what is at the destination is replaced at the end
    restart : whether what an interrupted run has left is thrown away
    verbose : show an estimate and progress bars

    Returns
    -------
    CheckpointReport, prints as a table

    Raises
    ------
    CheckpointSourceError, CheckpointArchitectureError, CheckpointMismatchError : the source
        cannot be read, or not as this network
    NonFiniteWeightError : NaN or infinity in a weight
    CheckpointExistsError, CheckpointBusyError, CheckpointPlaceError : the destination is taken
    UnfinishedCheckpointError, SourceChangedError : an interrupted run was about something else,
        or the source is being written to
    CheckpointWriteError : the disk is full, or another failure of the file system
    BudgetError, MissingDataError, ... : as `fit` of the compressor

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import load_file, save_file
    >>> from skcompress import SVDCompressor, compress_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
    ...     save_file(network.state_dict(), f"{folder}/large.safetensors")
    ...     paths = f"{folder}/large.safetensors", f"{folder}/small.safetensors"
    ...     report = compress_checkpoint(*paths, SVDCompressor(rank=0.5))
    ...     sorted(load_file(paths[1]))
    ['0.0.weight', '0.1.bias', '0.1.weight', '1.bias', '1.weight']
    """
    task = _Task.of(Path(source), compressor, model)
    place = Workplace(Path(destination), WHOLE if task.source.path.is_file() else None)
    _check_apart(task.source.path, place.destination)
    if verbose:
        print(task.estimate(), file=sys.stderr)
    with place.alone():
        return _carried_out(task, place, max_shard_size, overwrite, restart, verbose)


def estimate_checkpoint(source: Paths, compressor: Any, *, model: Any = None) -> Estimate:
    """Say about how long `compress_checkpoint` takes, and how much memory.

    By what a decomposition of a small matrix takes now: up to three times what it takes in the end,
    of large matrices. Raises
    what it would raise for these arguments.
    """
    return _Task.of(Path(source), compressor, model).estimate()


def checkpoint_curves(
    source: Paths, compressor: Any, *, model: Any = None, verbose: bool | int = False
) -> Iterator[tuple[Site, list[Curve]]]:
    """Yield every weight of a checkpoint with what each rank of it would cost and lose.

    Takes and raises what `compress_checkpoint` does.
    """
    task = _Task.of(Path(source), compressor, model)
    for group in tqdm(task.groups, desc="values", unit="layer", disable=not verbose):
        layers = with_values(task.architecture, group.modules)
        for site in group.sites:
            yield site, task.work.curves(layers, site.name)
        del layers


@dataclass(frozen=True)
class _Task:
    source: Source
    architecture: Architecture
    work: Work
    groups: list[Group]

    @classmethod
    def of(cls, path: Path, compressor: Any, model: Any) -> _Task:
        source = Source.at(path)
        architecture = Architecture.of(source, model)
        work = Work.of(compressor, architecture.model)
        work = replace(work, selection=leave_absent(work.selection, architecture))
        return cls(source, architecture, work, groups(work.selection.sites))

    def estimate(self) -> Estimate:
        return estimated(self.work, self.groups, self.source.n_bytes)

    def settings(self) -> str:
        """Digest of all but the source that the curves depend on."""
        tensors = named_tensors(self.architecture.model)
        shapes = [(name, tuple(t.shape), str(t.dtype)) for name, t in tensors]
        return _digest(version("skcompress"), self.work.settings(), shapes)

    def budget(self, max_shard_size: int) -> str:
        """Digest of what else decides what comes out."""
        return _digest(self.work.budget(), max_shard_size)


def _carried_out(
    task: _Task,
    place: Workplace,
    max_shard_size: int,
    overwrite: bool,
    restart: bool,
    verbose: bool | int,
) -> CheckpointReport:
    steps = Steps(torch.device(task.work.compressor.device or "cpu"))
    stamp = task.source.stamp()
    with steps("check"):
        about = {"source": task.source.digest(), "settings": task.settings()}
        journal = place.begin(about, overwrite=overwrite, restart=restart)
        resumed = journal.begun
        journal.add(BUDGET, task.budget(max_shard_size))
    try:
        with steps("values"):
            plan = _planned(task, journal, verbose)
    except NonFiniteWeightError:
        place.discard()
        raise
    model = task.architecture.model
    result = task.work.applied(plan, model, task.work.selection)
    replaced = replaced_modules(task.groups, plan)
    contents = Contents.of(result, task.architecture, replaced, task.source)
    single = task.source.path.is_file()
    shards = Shards(
        place.result,
        contents.entries,
        None if single else max_shard_size,
        contents.metadata(plan) if single else None,
    )
    if not journal.complete:
        with steps("factors"):
            _write(task, plan, contents, shards, journal, verbose)
        if not single:
            write_companions(task.source, place.result, contents, plan)
        if task.source.stamp() != stamp:
            place.discard()
            raise SourceChangedError(task.source.path)
    place.finish(journal)
    n_in = count_parameters(model)
    n_out = n_in - sum(planned.before - planned.after for planned in plan)
    return CheckpointReport(
        place.destination,
        Report(plan, n_in, n_out),
        (task.source.n_bytes, sum(entry.n_bytes for entry in contents.entries)),
        tuple(steps.done),
        resumed,
        tuple(stored.name for stored in task.architecture.further),
    )


def _digest(*said: Any) -> str:
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


def _planned(task: _Task, journal: Journal, verbose: bool | int) -> Plan:
    """Find the errors of every rank, and choose; what the journal has is taken from it."""
    if journal.get("plan") is not None:
        return Plan.from_dict(journal.get("plan"))
    for group in tqdm(task.groups, desc="values", unit="layer", disable=not verbose):
        missing = [s.name for s in group.sites if journal.get(CURVES + s.name) is None]
        if not missing:
            continue
        layers = with_values(task.architecture, group.modules)
        for name in missing:
            curves = task.work.curves(layers, name)
            journal.add(CURVES + name, [curve_to_json(curve) for curve in curves])
        del layers  # before the next ones are read
    curves_of = {
        site.name: [curve_from_json(data) for data in journal.get(CURVES + site.name)]
        for site in task.work.selection.sites
    }
    plan = task.work.plan(task.architecture.model, curves_of)
    journal.add("plan", plan.to_dict())
    return plan


def _write(
    task: _Task,
    plan: Plan,
    contents: Contents,
    shards: Shards,
    journal: Journal,
    verbose: bool | int,
) -> None:
    """Write factors and all that stays into the files, group by group."""
    done = shards.create()
    replaced = replaced_modules(task.groups, plan)
    open_ = [group for group in task.groups if replaced.intersection(group.modules)]
    for group in tqdm(open_, desc="factors", unit="layer", disable=not verbose):
        key = f"written {group.modules[0]}"
        if done and journal.get(key):
            continue
        layers = with_values(task.architecture, group.modules)
        compressed = task.work.applied(plan, layers, select(layers))
        del layers
        names = write_tensors(compressed, contents, shards)
        del compressed
        shards.sync(names)
        journal.add(key, True)
    if not (done and journal.get("copied")):
        for name, stored in contents.copied.items():
            shards.copy(name, stored)
        shards.sync()
        journal.add("copied", True)


def _check_apart(source: Path, destination: Path) -> None:
    one, other = source.resolve(), destination.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise CheckpointPlaceError(source, destination)
