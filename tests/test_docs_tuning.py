"""docs/tuning.md is true: its blocks run, section by section, and its table is the declaration."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

import pytest
import torch
from documents import sections

from skcompress import SVDCompressor
from skcompress.spaces import FloatRange, Options, Plugins, declared_space

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "tuning.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = sections(TEXT)
NEEDS = re.compile(r"^# pip install (.+)$", re.MULTILINE)
NEED_SKORCH = re.compile(r"SmoothClassifier|skorch")
START = "Searching with Optuna"
OBJECTIVE = "An objective of your own"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the page's start and the named sections, in an empty folder; give their names."""
    monkeypatch.chdir(tmp_path)

    def runner(*headings: str) -> dict[str, object]:
        namespace: dict[str, object] = {"__name__": "tuning"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for line, source in chain(*(SECTIONS[heading] for heading in (START, *headings))):
                for package in " ".join(NEEDS.findall(source)).split():
                    pytest.importorskip(package.replace("-", "_"))
                if NEED_SKORCH.search(source):
                    pytest.importorskip("skorch")
                # Padded with empty lines, so that a traceback shows the line of the page.
                exec(compile("\n" * (line - 1) + source, str(PAGE), "exec"), namespace)
        return namespace

    return runner


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::optuna.exceptions.ExperimentalWarning"
)
@pytest.mark.parametrize("heading", [h for h in SECTIONS if h != START])
def test_blocks_run(heading, run, capsys):
    names = run(*([OBJECTIVE] if heading == "What is searched" else []), heading)
    printed = capsys.readouterr().out
    if heading == OBJECTIVE:
        assert len(names["study"].trials) == 12
    elif heading == "The estimator that searches by itself":
        assert {"reconstruction", "user_attrs_seconds_compressing"} <= set(printed.split())
    elif heading == "Stopping hopeless trials":
        assert {trial.state.name for trial in names["study"].trials} == {"COMPLETE", "PRUNED"}
        assert len(names["search"].study_.trials[0].intermediate_values) == 8
    elif heading == "Interrupted, and resumed":
        assert "'rank' was float 0.1 to 0.9, is float 0.1 to 0.5" in printed
    elif heading == "Training and compression together":
        assert len(names["search"].study_.trials) == len(names["study"].trials) == 4


def test_the_table_is_what_is_declared():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE))
    declared = declared_space(SVDCompressor)
    assert set(rows) == {name for name, space in declared.items() if not space.needs_data}
    for name, told in rows.items():
        space = declared[name]
        if isinstance(space, FloatRange):
            assert told == f"{space.low} to {space.high}"
        elif isinstance(space, Options):
            shown = [f'`"{v}"`' if isinstance(v, str) else str(v) for v in space.values]
            assert told == ", ".join(shown)
        else:
            assert isinstance(space, Plugins)
    need_data = {name for name, space in declared.items() if space.needs_data}
    sentence = TEXT[TEXT.index("calibration inputs, ") :].partition("too.")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == need_data


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", TEXT))
def test_links_lead_somewhere(link):
    path, _, anchor = link.partition("#")
    target = DOCS / path if path else PAGE
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
