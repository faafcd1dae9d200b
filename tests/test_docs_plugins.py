"""docs/plugins.md is true: its package is built as the page says, tested, used and misused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="reads a pyproject.toml; Python 3.11 or later")

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
FILES = dict(re.findall(r"^\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))

MISUSE = """
from skcompress import registry

for name in ("interpolativ", "interpolative", "broken", "odd"):
    try:
        registry.resolve("decompositions", name)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def make_importable(folder: Path, project: dict) -> None:
    """Put beside the package what pip would: its name, version and entry points."""
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    header = {"Metadata-Version": "2.1", "Name": project["name"], "Version": project["version"]}
    (info / "METADATA").write_text("".join(f"{k}: {v}\n" for k, v in header.items()))
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def run(folder: Path, *arguments: str, path: tuple[Path, ...]) -> str:
    """Output of a new Python that finds what lies in the folders of `path`."""
    known = filter(None, [*map(str, path), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(known), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The folder that a reader of the page ends up with, importable."""
    folder = tmp_path_factory.mktemp("skcompress-example")
    for name, text in FILES.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    make_importable(folder, tomllib.loads(FILES["pyproject.toml"])["project"])
    return folder


def test_every_file_of_the_folder_is_on_the_page():
    tree = re.search(r"```text\nskcompress-example/\n(.*?)```", PAGE, re.DOTALL)
    assert tree is not None
    named = [line.strip() for line in tree[1].splitlines() if not line.endswith("/")]
    assert sorted(named) == sorted(Path(name).name for name in FILES)


def test_authors_tests_pass(package):
    options = "-q", "--rootdir", ".", "-p", "no:cacheprovider"
    output = run(package, "-m", "pytest", *options, "tests", path=(package,))
    n_written = FILES["tests/test_plugins.py"].count("\ndef test_")
    assert f"{n_written} passed" in output


def test_use_by_name(package):
    blocks = re.findall(r"\n\n```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    use = [block for block in blocks if block not in FILES.values()]
    outputs = [run(package, "-c", block, path=(package,)) for block in use]
    assert any("'interpolative'" in output for output in outputs)


def test_errors_read_as_on_the_page(package, tmp_path):
    points = {"interpolative": "skcompress_example:Interpolative", "broken": "nowhere:Broken",
              "odd": "skcompress_example:FilterNorm"}  # fmt: skip
    other = {
        "name": "other-package",
        "version": "1",
        "entry-points": {"skcompress.decompositions": points},
    }
    make_importable(tmp_path, other)
    met = run(package, "-c", MISUSE, path=(package, tmp_path)).strip().splitlines()
    told = re.findall(r"```text\n(\w+Error: .*?)```", PAGE, re.DOTALL)
    assert met == [" ".join(text.split()) for text in told]
