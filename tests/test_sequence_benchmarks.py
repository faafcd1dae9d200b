"""examples/benchmarks/sequences.py, and its text and recordings, on made-up data."""

from __future__ import annotations

import json
import lzma
import sys
from importlib import import_module
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
TEXT = "".join(np.random.default_rng(0).choice(["to be, ", "or not\n"], 600))


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module
    for name in [n for n, m in sys.modules.items() if _folder(m) == FOLDER]:
        del sys.modules[name]


def _folder(module):
    return Path(getattr(module, "__file__", None) or "/").parent


def recordings():
    """Counts at 50 Hz of three people; SA20 is a test person."""
    rng = np.random.default_rng(0)
    cases = [("D01", "SA01", 700), ("F15", "SA02", 300), ("D01", "SA20", 600), ("D02", "SA02", 99)]
    return [(a, p, rng.integers(-900, 900, (n, 6), dtype=np.int16)) for a, p, n in cases]


def write_pack(root):
    found = recordings()
    signal = np.concatenate([samples for *_, samples in found]).T
    steps = np.diff(signal, axis=1, prepend=np.int16(0))
    zigzag = ((steps << 1) ^ (steps >> 15)).astype(np.uint16)
    planes = np.stack([zigzag & 255, zigzag >> 8], 1).astype(np.uint8)
    root.mkdir(parents=True)
    (root / "sisfall_50hz.xz").write_bytes(lzma.compress(planes.tobytes()))
    activities, people, samples = zip(*found, strict=True)
    np.savez(root / "sisfall_index.npz", code=activities, subject=people,
             length=[len(s) for s in samples])  # fmt: skip


def write_official(root):
    for activity, person, samples in recordings():
        (root / person).mkdir(parents=True, exist_ok=True)
        at_200_hz = np.repeat(samples, 4, axis=0).astype(int)
        at_200_hz[::4] -= 3
        at_200_hz[1::4] += 3
        lines = [",".join(f"{n:4}" for n in (*row, 0, 0, 0)) + ";\n" for row in at_200_hz]
        (root / person / f"{activity}_{person}_R01.txt").write_text("".join(lines))


@pytest.mark.parametrize("write", [write_pack, write_official])
def test_both_layouts_hold_the_same_recordings(benchmark, write, tmp_path):
    write(tmp_path / "data")
    found = benchmark("sisfall").read(tmp_path / "data")
    expected = {(activity, person): samples for activity, person, samples in recordings()}
    assert len(found.samples) == len(expected)
    for samples, activity, person in zip(*found, strict=True):
        assert np.array_equal(samples, expected[activity, person])


def test_windows_stay_in_their_recording_and_people_apart(benchmark, tmp_path):
    write_pack(tmp_path / "data")
    task = benchmark("sisfall").SisFall(tmp_path / "data")
    assert task.train[:, 0].tolist() == [0, 128, 256, 384, 700]
    assert task.train[:, 2].tolist() == [0, 0, 0, 0, 33]
    assert task.test[:, 0].sort().values.tolist() == [1000, 1128, 1256]
    generator = torch.Generator().manual_seed(0)
    windows, activities = task.batch(64, generator)
    scale = benchmark("sisfall").SCALE[:, None]
    fall, walk = (torch.from_numpy(recordings()[n][2].T) * scale for n in (1, 0))
    for window, activity in zip(windows, activities.tolist(), strict=True):
        places = {0: walk, 33: fall}[activity].unfold(1, 256, 1).transpose(0, 1)
        assert (places == window).flatten(1).all(1).any()
    assert torch.equal(scale.flatten()[[0, 3]], torch.tensor([32 / 8192, 40 / 65536]))


def test_quality_of_guessing_and_of_knowing(benchmark, tmp_path):
    write_pack(tmp_path / "data")
    (tmp_path / "tinyshakespeare.txt").write_text(TEXT)
    text = benchmark("shakespeare").Shakespeare(tmp_path)
    guess = nn.Embedding(text.vocabulary, text.vocabulary)
    nn.init.zeros_(guess.weight)
    assert text.quality(guess) == pytest.approx(log2(text.vocabulary))
    falls = benchmark("sisfall").SisFall(tmp_path / "data")
    know = nn.Sequential(nn.Flatten(), nn.Linear(6 * 256, 34))
    nn.init.zeros_(know[1].weight)
    for activity, quality in ((0, 100), (1, 0)):
        nn.init.zeros_(know[1].bias)
        know[1].bias.data[activity] = 1
        assert falls.quality(know) == quality


def test_targets_are_one_character_on_and_calibration_is_of_the_training_part(benchmark, tmp_path):
    (tmp_path / "tinyshakespeare.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    task = benchmark("shakespeare").Shakespeare(tmp_path)
    inputs, targets = task.batch(8, torch.Generator().manual_seed(0))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(task.inputs.flatten()[1:], task.targets.flatten()[:-1])
    letters = np.array(sorted(set(TEXT)))
    for window in task.calibration(16, np.random.default_rng(0)):
        assert "".join(letters[window]) in TEXT[: int(0.9 * len(TEXT))]


def test_the_decoder_sees_no_later_character_and_tells_places_apart(benchmark):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Of one block: a second one could tell places by what the first was allowed to see.
        decoder = benchmark("shakespeare").Decoder(10, width=32, depth=1, n_heads=2).eval()
    codes = torch.randint(10, (3, 12), generator=torch.Generator().manual_seed(0))
    codes[:, :2] = torch.tensor([0, 1])
    changed = codes.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 10
    before, after = decoder(codes), decoder(changed)
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.allclose(before[:, 8:], after[:, 8:])
    swapped = codes[:, [1, 0, *range(2, 12)]]
    assert not torch.allclose(decoder(swapped)[:, -1], before[:, -1], atol=1e-5)


@pytest.mark.parametrize("name", ["transformer", "conv_lstm"])
def test_training_then_compressing(benchmark, name, tmp_path, monkeypatch):
    write_pack(tmp_path / "data" / "sisfall")
    (tmp_path / "data" / "text").mkdir()
    (tmp_path / "data" / "text" / "input.txt").write_text(TEXT)
    sequences = benchmark("sequences")
    recipe = sequences.RECIPES[name]._replace(batch_size=4)
    monkeypatch.setitem(sequences.RECIPES, name, recipe)
    before = torch.get_rng_state()
    folder = {"transformer": "text", "conv_lstm": "sisfall"}[name]
    results = [
        sequences.main([name, "--data", str(tmp_path / "data" / folder), "--steps", str(steps),
                        "--threads", "1", "--output", str(tmp_path / "runs"), "--device", "cpu"])
        for steps in (1, 15)
    ]  # fmt: skip
    assert results[1]["training loss"] < results[0]["training loss"]
    assert torch.equal(torch.get_rng_state(), before)
    assert json.loads((tmp_path / "runs" / name / "results.json").read_text()) == results[1]

    benchmark("posttraining").main([
        "--data", str(tmp_path / "data"), "--network", name, "--trained", str(tmp_path / "runs"),
        "--images", "4", "--seeds", "0", "--keep", "0.5", "--output", str(tmp_path / "out"),
        "--methods", "plain, global", "sequential", "--test-images", "2", "--device", "cpu",
    ])  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").open()]
    assert [row["settings"] is None for row in rows] == [True, False, False]
    assert rows[0]["quality"] == pytest.approx(_dense_quality(benchmark, tmp_path, name), rel=1e-5)
    assert all(row["parameters_out"] <= 0.5 * row["parameters_in"] for row in rows[1:])


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(
    benchmark, tmp_path, monkeypatch
):
    write_pack(tmp_path / "data")
    sequences = benchmark("sequences")
    monkeypatch.setattr(sequences, "SAVE_EVERY", 2)

    def run(name):
        return sequences.main(["conv_lstm", "--data", str(tmp_path / "data"), "--steps", "5",
                               "--threads", "1", "--device", "cpu",
                               "--output", str(tmp_path / name)])  # fmt: skip

    whole = run("whole")
    step = sequences.Training.step

    def interrupted(self, generator):
        if len(self.losses) == 3:
            raise KeyboardInterrupt
        step(self, generator)

    with monkeypatch.context() as patch:
        patch.setattr(sequences.Training, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("parts")
    parts = run("parts")
    assert parts["training loss"] == whole["training loss"]
    first, second = (
        load_file(tmp_path / name / "conv_lstm" / "network.safetensors")
        for name in ("whole", "parts")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def _dense_quality(benchmark, root, name):
    subject = benchmark("posttraining_tasks").open_subject(name, root / "runs", root / "data", 2)
    assert subject.kind == name
    return subject.task.quality(subject.network)


def test_missing_data_says_what_is_expected(benchmark, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected tinyshakespeare\.txt or"):
        benchmark("shakespeare").Shakespeare(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected folders SA01 \.\.\. SE15"):
        benchmark("sisfall").SisFall(tmp_path)
