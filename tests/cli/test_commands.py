"""The command `skcompress`: what it writes where, how it ends, and what it says when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import skcompress
from skcompress import SVDCompressor, TuckerCompressor, registry
from skcompress.cli import plugins
from skcompress.cli.main import main

NETS = """
import torch
from torch import nn

def build():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 30))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model

@torch.no_grad()
def score(model):
    x = torch.linspace(-1, 1, 240).reshape(10, 24)
    return -float((model(x) - build()(x)).square().mean())

def broken():
    raise OSError("no weights here")

SIZE = 3
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call the command in a folder with a module `nets`: gives exit code, stdout and stderr."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("nets", None)

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["skcompress", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    yield called
    sys.modules.pop("nets", None)


@pytest.fixture
def large(run):
    import nets

    save_file(nets.build().state_dict(), "large.safetensors")
    return "large.safetensors"


def state(compressor, *data) -> dict[str, torch.Tensor]:
    import nets

    return compressor.fit_transform(nets.build(), *data).state_dict()


def check_holds(path, expected):
    found = load_file(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_file(run, large):
    code, out, err = run("compress", large, "small.safetensors", "--rank", 0.5, "--model",
                         "nets:build")  # fmt: skip
    assert code == 0
    check_holds("small.safetensors", state(SVDCompressor(0.5)))
    assert "parameters (" in out
    assert "values:" in err
    assert "about" in err


def test_json_on_stdout_and_nothing_on_stderr(run, large):
    code, out, err = run("compress", large, "s.safetensors", "--rank", 4, "--json", "--quiet",
                         "--exclude", "2")  # fmt: skip
    said = json.loads(out)
    assert (code, err) == (0, "")
    assert {layer["name"]: layer["rank"] for layer in said["layers"]} == {"0": 4, "2": None}
    assert said["n_parameters"][1] < said["n_parameters"][0]


def test_a_function_with_data_and_further_parameters(run):
    inputs = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    np.save("x.npy", inputs.numpy())
    save_file({"x": inputs}, "x.safetensors")
    expected = state(SVDCompressor(0.5, reconstruction="independent", measure=False), inputs)
    for n, data in enumerate(("x.npy", "x.safetensors")):
        code, _, _ = run(
            "compress", "nets:build", f"{n}.safetensors", "--rank", 0.5, "--data", data,
            "--set", "reconstruction=independent", "--set", "measure=false",
        )  # fmt: skip
        assert code == 0
        check_holds(f"{n}.safetensors", expected)
    run("compress", "nets:build", "t.safetensors", "--rank", 0.5, "--method", "tucker")
    check_holds("t.safetensors", state(TuckerCompressor(0.5)))


def test_a_folder_of_transformers_with_and_without_data(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        vocab_size=60, max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained("bert")
    ids = torch.arange(40).reshape(4, 10)
    np.savez("ids.npz", input_ids=ids.numpy(), attention_mask=np.ones((4, 10), int))
    batch = {"input_ids": ids, "attention_mask": torch.ones(4, 10, dtype=torch.long)}
    for out, more, data in (("a", (), None), ("b", ("--data", "ids.npz"), [batch])):
        code, _, err = run("compress", "bert", out, "--rank", 0.6, *more)
        assert code == 0, err
        expected = SVDCompressor(0.6).fit_transform(model, data).state_dict()
        found = load_file(tmp_path / out / "model.safetensors")
        values = {name: tensor for name, tensor in found.items() if tensor.numel()}
        assert all(torch.equal(tensor, expected[name]) for name, tensor in values.items())
        again = transformers.AutoModelForMaskedLM.from_pretrained(out).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
        assert json.loads((tmp_path / out / "skcompress.json").read_text())["plan"]["layers"]


def test_an_estimate_writes_nothing(run, large, tmp_path):
    before = set(tmp_path.iterdir())
    code, out, _ = run("compress", large, "small.safetensors", "--estimate", "--json")
    assert code == 0
    assert json.loads(out)["seconds"] > 0
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("source", ["file", "function"])
def test_inspect_says_what_ranks_keep(source, run, large):
    import nets

    code, out, _ = run(
        "inspect", large if source == "file" else "nets:build", "--json", "--plot", "spectra.png"
    )
    assert code == 0
    first = json.loads(out)["weights"][0]
    values = torch.linalg.svdvals(nets.build()[0].weight.detach().double()).square()
    for kept in first["kept"]:
        if kept is not None:
            rank = int(kept["share"] * 24 * 40 / 64)
            assert kept["rank"] == rank
            assert kept["energy"] == pytest.approx(float(values[:rank].sum() / values.sum()))
    with open("spectra.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"
    _, table, _ = run("inspect", large, "--layers", "0", "--quiet")
    assert len(table.splitlines()) == 3


def test_tune(run, large):
    common = ("--scoring", "nets:score", "--trials", 4, "--seed", 0, "--quiet")
    code, out, _ = run("tune", "nets:build", *common, "--out", "best.safetensors", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["best"]["trial"] in {row["trial"] for row in said["front"]}
    assert (
        sum(t.numel() for t in load_file("best.safetensors").values())
        == (said["best"]["n_parameters"])
    )
    code, out, _ = run("tune", large, "--model", "nets:build", *common)
    assert code == 0
    assert f"best is trial {said['best']['trial']}: rank=" in out


def test_plugins(run, monkeypatch):
    code, out, _ = run("plugins", "decompositions", "--json")
    rows = json.loads(out)["plugins"]
    assert code == 0
    assert [row["name"] for row in rows] == registry.names("decompositions")
    assert next(row for row in rows if row["name"] == "svd")["package"] == "skcompress"
    bad = EntryPoint("gone", "no_such_module:Thing", "skcompress.criteria")
    points = registry._entry_points("criteria")
    monkeypatch.setattr(registry, "_scan", lambda group, state: [*points, bad])
    monkeypatch.setattr(plugins, "entry_points", lambda group: [*points, bad])
    code, out, _ = run("plugins", "criteria")
    broken = [line for line in out.splitlines() if "broken" in line]
    assert code == 1
    assert len(broken) == 1
    assert "no_such_module" in broken[0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["compres"], 2, "compress"),
        (["compress", "large.safetensors", "out", "--rnk", "1"], 2, "--rank"),
        (["compress", "large.safetensors", "out", "--rank", "x"], 2, "'auto'"),
        (["compress", "large.safetensors", "out", "--rank", "1.5"], 1, "'rank' parameter"),
        (["compress", "large.safetensors", "out", "--rank", "0.001"], 1, "Ask for rank >="),
        (["compress", "large.safetensors", "out", "--method", "sdv"], 2, "did you mean 'svd'"),
        (["compress", "large.safetensors", "out", "--method", "pruner"], 2, "no low-rank method"),
        (["compress", "large.safetensors", "out", "--set", "pivt=true"], 2, "'pivot'"),
        (["compress", "large.safetensors", "out", "--set", "pivot"], 2, "NAME=VALUE"),
        (["compress", "large.safetensors", "out", "--exclude", "9"], 1, "matches no layer"),
        (["compress", "large.safetensors", "nets.py"], 1, "overwrite"),
        (["compress", "lage.safetensors", "out"], 1, "no such file"),
        (["compress", "nets:buld", "out"], 2, "'build'"),
        (["compress", "nets:SIZE", "out"], 2, "cannot be called"),
        (["compress", "nets:broken", "out"], 2, "nets:broken raised OSError: no weights here"),
        (["compress", "nets:dict", "out"], 2, "has no 'dict'"),
        (["compress", "nets:torch.Size", "out"], 1, "torch.nn.Module instance"),
        (["compress", "nest:build", "out"], 2, "cannot import 'nest'"),
        (["compress", "nets:build", "out", "--estimate"], 2, "--data"),
        (["compress", "nets:build", "nets.py"], 2, "--overwrite"),
        (["compress", "large.safetensors", "out", "--data", "missing.npy"], 2, "missing.npy"),
        (["compress", "large.safetensors", "out", "--data", "nets.py"], 2, ".npz"),
        (["compress", "large.safetensors", "out", "--data", "large.safetensors"], 2, "--model"),
        (["inspect", "large.safetensors", "--model", "build"], 2, "module:name"),
        (["tune", "nets:build", "--scoring", "nets:score", "--space", "rnk"], 2, "'rank'"),
        (["tune", "nets:build", "--scoring", "nets:score", "--out", "nets.py"], 2, "exists"),
        (["plugins", "decomposition"], 1, "'decompositions'"),
    ],
)
def test_errors_say_what_to_do(arguments, code, said, run, large, tmp_path):
    before = set(tmp_path.iterdir())
    ended, out, err = run(*arguments)
    assert ended == code
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    new = set(tmp_path.iterdir()) - before
    assert all(p.name in ("__pycache__", ".out.unfinished") for p in new)


@pytest.mark.parametrize("command", ["compress", "inspect", "tune", "plugins"])
def test_help_has_examples_that_parse(command, run):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"skcompress {command} " in out.partition("Examples:")[2]


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "skcompress", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (f"{skcompress.__version__}\n", "")


def test_interrupted(run, large, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("skcompress.cli.compress.compress_checkpoint", interrupted)
    code, out, err = run("compress", large, "out")
    assert code == 130
    assert "Traceback" not in out + err
