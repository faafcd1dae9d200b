"""Who may import whom, and what importing the package may cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import skcompress

ROOT = Path(skcompress.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# The lowest layer first; a part imports from layers below its own, or from its own.
LAYERS = [
    {"eigenvectors", "errors", "linalg", "masks", "polar_express", "precision", "randomness",
     "ranking", "supported", "threads", "unfolding"},
    {"spaces"},
    {"protocols"},
    {"registry", "layers", "decompositions", "allocations", "regularizers", "criteria", "costs",
     "objectives", "storages", "metrics", "plan"},
    {"network"},
    {"statistics"},
    {"lockstep"},
    {"fitting", "penalties"},
    {"compressors"},
    {"building"},
    {"testing", "training", "tuning", "plotting", "checkpoint"},
    {"cli", "__main__"},
]  # fmt: skip
# What built-in plugins may use: what strangers may, and files of their own folder.
PLUGIN_FOLDERS = {
    "decompositions", "allocations", "regularizers", "criteria", "costs", "objectives", "storages",
}  # fmt: skip
OPEN_TO_PLUGINS = {
    "protocols", "spaces", "errors", "linalg", "masks", "metrics", "ranking", "supported",
    "threads", "unfolding",
}  # fmt: skip
# What packages of plugins may use, ours in `plugins/` like everybody's.
OPEN_TO_PACKAGES = {
    "building", "errors", "linalg", "metrics", "plan", "protocols", "registry", "spaces", "testing",
}  # fmt: skip
PACKAGE_FILES = sorted((ROOT.parent / "plugins").glob("*/skcompress_*/**/*.py"))


def part(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Parts of skcompress that a file imports, in function bodies too."""
    package = ("skcompress", *path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("skcompress.")}
    return found - {part(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path):
    own = part(path)
    if own == "__init__":
        return
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    assert own in level, f"{own} has no place in the layout: add it to LAYERS"
    imported = imported_parts(path)
    if own in PLUGIN_FOLDERS:
        assert imported <= OPEN_TO_PLUGINS
    for other in imported:
        assert level[other] <= level[own], f"{own} imports {other}, which is built on it"


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda p: "/".join(p.parts[-2:]))
def test_packages_of_plugins_import_what_is_published(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "skcompress":
            names = [f"skcompress.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            package, _, own = name.partition(".")
            published = own in OPEN_TO_PACKAGES or own in skcompress.__all__
            assert package != "skcompress" or not own or published, f"{path.name} imports {name}"


def test_all_that_compressors_are_built_of_is_described():
    from skcompress import building

    public = {
        name
        for name, value in vars(building).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(building.__all__) == public
    described = set(re.findall(r"`(?:\w+\.)?(\w+)`", building.__doc__))
    assert public <= described


def modules_loaded_by(code: str) -> set[str]:
    """Modules that `code` loads in a fresh process, beyond torch, sklearn.base and tqdm."""
    script = (
        "import sys, torch, sklearn.base, tqdm.auto; before = set(sys.modules)\n"
        f"{code}\nprint(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_importing_is_silent_and_discovers_nothing():
    loaded = modules_loaded_by("import skcompress")
    assert "skcompress" in loaded
    assert not loaded & {"optuna", "skorch", "matplotlib", "pandas", "transformers"}
    assert not {m for m in loaded if m.startswith("skcompress.")}


def test_optional_packages_are_imported_by_one_part_only():
    """skorch by `training`, matplotlib by `plotting`, and that only when something is drawn."""
    homes = {"skorch": {"training"}, "matplotlib": {"plotting"}, "optuna": {"tuning"}}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                package = name.split(".")[0]
                assert part(path) in homes.get(package, {part(path)}), f"{path} imports {package}"
    assert "matplotlib" not in modules_loaded_by("import skcompress.plotting")


def test_using_a_compressor_imports_no_optional_package():
    loaded = modules_loaded_by(
        "import warnings; warnings.simplefilter('ignore')\n"
        "from skcompress import SVDCompressor\n"
        "SVDCompressor(rank=0.5).fit_transform(torch.nn.Sequential(torch.nn.Linear(20, 20)))"
    )
    assert "skcompress.compressors.svd" in loaded
    assert not loaded & {"optuna", "skorch", "matplotlib", "pandas", "transformers"}
