"""docs/training.md is true: its blocks run, and in each way of training the penalty bites."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import torch
from documents import sections
from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
NEEDS = re.compile(r"^# pip install (.+)$", re.MULTILINE)
STRENGTH = "weight=1e-2"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = sections(TEXT)
START = "Training smooth networks"
WAYS = [heading for heading in SECTIONS if heading != START]


def run(heading: str, strength: str = STRENGTH) -> nn.Module:
    """Run the page's start and one section of it, and give the network it ends with."""
    namespace: dict[str, object] = {"__name__": "training"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for line, source in SECTIONS[START] + SECTIONS[heading]:
            for package in " ".join(NEEDS.findall(source)).split():
                pytest.importorskip(package)
            # Padded with empty lines, so that a traceback shows the line of the page.
            padded = "\n" * (line - 1) + source.replace(STRENGTH, strength)
            exec(compile(padded, str(PAGE), "exec"), namespace)
    model = namespace["model"]
    assert isinstance(model, nn.Module)
    return model


def nuclear_norm(model: nn.Module) -> float:
    weights = [p.detach().flatten(1) for p in model.parameters() if p.dim() > 1]
    return float(sum(torch.linalg.matrix_norm(w, "nuc") for w in weights))


@pytest.fixture(autouse=True)
def _as_started_by_torchrun(monkeypatch):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1}
    for name, value in address.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.filterwarnings("ignore")  # Lightning's and the Trainer's, on numbers of workers
@pytest.mark.parametrize("heading", WAYS)
def test_the_penalty_makes_the_network_smoother(heading, capsys):
    assert nuclear_norm(run(heading)) < 0.92 * nuclear_norm(run(heading, "weight=0.0"))


def test_the_ways_of_training_are_all_there():
    assert len(WAYS) == 8


@pytest.mark.parametrize("link", re.findall(r"\]\(#([^)]+)\)", TEXT))
def test_links_lead_to_headings(link):
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    assert link in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
