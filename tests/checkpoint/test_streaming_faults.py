"""Kills, full disks, forbidden folders, two writers, sources that change: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from filelock import FileLock
from models import seeded
from streaming_cases import check_same, contents, saved
from torch import nn

from skcompress import SVDCompressor, compress_checkpoint
from skcompress.checkpoint import streaming
from skcompress.checkpoint.streaming_journal import Journal, Workplace
from skcompress.errors import (
    BudgetError,
    CheckpointBusyError,
    CheckpointExistsError,
    CheckpointWriteError,
    SourceChangedError,
    UnfinishedCheckpointError,
)

N_KILLS = 8


class StoppedError(Exception):
    """Stands for a kill, at a moment that a test chooses."""


def network() -> nn.Module:
    return nn.Sequential(*(nn.Linear(40, 40) for _ in range(6)))


@pytest.fixture
def source(tmp_path):
    return saved(seeded(network), tmp_path / "large.safetensors")


def compress(source, out, compressor=None, **keywords):
    return compress_checkpoint(source, out, compressor or SVDCompressor(0.5), **keywords)


@contextlib.contextmanager
def stopped_at(method, owner, n, monkeypatch):
    """Raise `StoppedError` in the n-th call of a method from now on."""
    original, calls = getattr(owner, method), []

    def stopping(*args, **keywords):
        calls.append(args)
        if len(calls) == n:
            raise StoppedError
        return original(*args, **keywords)

    with monkeypatch.context() as patch, contextlib.suppress(StoppedError):
        patch.setattr(owner, method, stopping)
        yield
    assert len(calls) == n


def test_killed_at_random_moments_it_ends_as_if_it_was_not(tmp_path):
    model = seeded(lambda: ARCHITECTURES["llama"]()[0]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    program = Path(__file__).with_name("streaming_interrupted.py")
    command = [sys.executable, str(program), str(tmp_path), str(N_KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kills, _, resumed = map(int, done.stdout.split())
    assert kills == N_KILLS
    assert resumed > 0


@pytest.mark.parametrize("n", [2, 4, 9, 13, 16])
def test_nothing_is_done_twice(n, source, tmp_path, monkeypatch):
    """Stopped at its n-th note, a run that goes on makes the others only."""
    out = tmp_path / "out.safetensors"
    with stopped_at("add", Journal, n, monkeypatch):
        compress(source, out)
    assert not out.exists()
    noted = len((tmp_path / ".out.safetensors.unfinished/journal").read_bytes().splitlines())
    assert noted == n - 1
    added = []
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda self, k, v: (added.append(k), add(self, k, v)))
    report = compress(source, out)
    assert report.resumed
    first = [key for key in added if key not in ("about", "budget")]
    assert len(first) == len(set(first)) <= 17 - max(n - 3, 0)
    check_same(out, SVDCompressor(0.5).fit_transform(seeded(network)))
    assert not Workplace(out).folder.exists()


def test_a_line_that_was_being_written_does_not_count(source, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    with stopped_at("add", Journal, 6, monkeypatch):
        compress(source, out)
    with (Workplace(out).folder / "journal").open("ab") as file:
        file.write(b'["curves of 4", [{"sch')
    assert compress(source, out).resumed
    check_same(out, SVDCompressor(0.5).fit_transform(seeded(network)))


def test_files_that_went_missing_are_made_anew(source, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    with stopped_at("finish", Workplace, 1, monkeypatch):
        compress(source, out)
    shutil.rmtree(Workplace(out).result)
    compress(source, out)
    check_same(out, SVDCompressor(0.5).fit_transform(seeded(network)))


@pytest.mark.parametrize(
    ("kind", "owner", "method"),
    [
        ("file", os, "replace"),
        ("file", Workplace, "discard"),
        ("folder", os, "rename"),
        ("folder", os, "replace"),  # the old one has gone, the new one has not come
        ("folder", Workplace, "discard"),
    ],
)
def test_stopped_while_the_result_takes_its_place(
    kind, owner, method, source, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    if kind == "folder":
        (tmp_path / "large").mkdir()
        source = source.rename(tmp_path / "large/model.safetensors").parent
        out.mkdir()
        (out / "old").write_text("old")
    else:
        out.write_text("old")
    with stopped_at(method, owner, 1, monkeypatch):
        compress(source, out, overwrite=True)
    kept = [text for text in contents(tmp_path).values() if text == b"old"]
    assert len(kept) == (method != "discard" or kind == "folder")
    compress(source, out, overwrite=True)
    check_same(out, SVDCompressor(0.5).fit_transform(seeded(network)))
    assert not Workplace(out).folder.exists()


def test_giving_up_puts_back_what_was_there(source, tmp_path, monkeypatch):
    (tmp_path / "large").mkdir()
    folder = source.rename(tmp_path / "large/model.safetensors").parent
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with stopped_at("replace", os, 1, monkeypatch):
        compress(folder, out, overwrite=True)
    with pytest.raises(CheckpointExistsError):
        compress(folder, out, restart=True)
    assert (out / "old").read_text() == "old"


def test_other_settings_ask_and_another_rank_keeps_the_curves(source, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    with pytest.raises(BudgetError):
        compress(source, out, SVDCompressor(0.001))
    with pytest.raises(UnfinishedCheckpointError, match="another settings"):
        compress(source, out, SVDCompressor(0.5, pivot=True))
    with monkeypatch.context() as patch:
        patch.setattr(streaming.Work, "curves", None)  # not needed any more
        for rank in (0.3, 0.5, 0.3):
            with stopped_at("finish", Workplace, 1, monkeypatch):
                compress(source, out, SVDCompressor(rank))
        compress(source, out, SVDCompressor(0.5))
    check_same(out, SVDCompressor(0.5).fit_transform(seeded(network)))
    compress(source, tmp_path / "p.safetensors", SVDCompressor(0.5, pivot=True), restart=True)


def test_a_source_that_changed_is_noticed(source, tmp_path, monkeypatch):
    out = tmp_path / "out.safetensors"
    with stopped_at("add", Journal, 12, monkeypatch):
        compress(source, out)
    bytes_ = bytearray(source.read_bytes())
    bytes_[-3] ^= 1
    source.write_bytes(bytes_)
    with pytest.raises(UnfinishedCheckpointError, match="another source"):
        compress(source, out)
    assert not out.exists()

    create = streaming.Shards.create

    def touched(self):
        source.write_bytes(source.read_bytes())
        return create(self)

    monkeypatch.setattr(streaming.Shards, "create", touched)
    with pytest.raises(SourceChangedError):
        compress(source, out, restart=True)
    assert not out.exists()


def test_two_writers(source, tmp_path):
    out = tmp_path / "out.safetensors"
    place = Workplace(out)
    place.folder.mkdir()
    with FileLock(place.folder / "lock"), pytest.raises(CheckpointBusyError, match=r"out\.safe"):
        compress(source, out)
    compress(source, out)
    assert out.exists()


@pytest.mark.parametrize("n_bytes", [1000, 19_000])
def test_a_full_disk(n_bytes, source, tmp_path):
    """Of files no larger than that; the next attempt goes on."""
    out = tmp_path / "out.safetensors"
    out.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        with pytest.raises(CheckpointWriteError, match="File too large"):
            compress(source, out, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert out.read_text() == "old"
    compress(source, out, overwrite=True)
    check_same(out, SVDCompressor(0.5).fit_transform(seeded(network)))


def test_folders_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(CheckpointWriteError, match="Not a directory"):
        compress(source, tmp_path / "file" / "out.safetensors")
    with pytest.raises(CheckpointWriteError, match="No such file or directory"):
        compress(source, tmp_path / "nowhere" / "out.safetensors")
    with pytest.raises(CheckpointWriteError, match="/proc/out"):
        compress(source, Path("/proc/out.safetensors"))
    assert contents(tmp_path) == before
