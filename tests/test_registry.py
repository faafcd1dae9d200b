from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import skcompress
from skcompress import registry
from skcompress.decompositions.svd import SVD
from skcompress.errors import (
    NotInstalledError,
    PluginConflictError,
    PluginLoadError,
    PluginTypeError,
    UnknownNameError,
)
from skcompress.regularizers.nuclear_norm import NuclearNorm


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Give a function that makes a package importable, with entry points, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def _install(package: str, module: str, source: str, points: dict[str, dict[str, str]]):
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = []
        for group, names in points.items():
            lines += [f"[skcompress.{group}]", *(f"{n} = {t}" for n, t in names.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    return _install


MINE = """
from skcompress.protocols import Regularizer
class Mine(Regularizer):
    def penalty(self, weight):
        return weight.square().sum()
"""


def test_names_are_sorted_and_load_nothing(install):
    install("loud", "loud", "raise RuntimeError('loaded')", {"regularizers": {"loud": "loud:X"}})
    names = registry.names("regularizers")
    assert names == sorted(names)
    assert "loud" in names
    assert "loud" not in sys.modules


def test_resolve_gives_the_class_or_the_instance():
    assert registry.resolve("decompositions", "svd") is SVD
    mine = SVD()
    assert registry.resolve("decompositions", mine) is mine


def test_third_party_plugin_is_found(install):
    install("mine", "mine_pkg", MINE, {"regularizers": {"mine": "mine_pkg:Mine"}})
    assert registry.resolve("regularizers", "mine").__name__ == "Mine"


def test_misspelt_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'nuclear_nrm'.*did you mean 'nuclear_norm'"):
        registry.resolve("regularizers", "nuclear_nrm")


def test_unknown_kind_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"'regularizer'.*did you mean 'regularizers'"):
        registry.names("regularizer")


def test_two_packages_with_one_name_are_both_named_when_it_is_asked_for(install):
    for package in ("first-package", "second-package"):
        module = package.replace("-", "_")
        install(package, module, MINE, {"regularizers": {"twice": f"{module}:Mine"}})
    assert "twice" in registry.names("regularizers")
    assert registry.resolve("regularizers", "nuclear_norm") is NuclearNorm
    with pytest.raises(PluginConflictError, match="'first-package' and 'second-package'"):
        registry.resolve("regularizers", "twice")


def test_plugin_that_fails_to_import_names_its_package(install):
    install("broken", "broken_mod", "import nowhere", {"regularizers": {"b": "broken_mod:X"}})
    assert registry.resolve("regularizers", "nuclear_norm") is NuclearNorm
    with pytest.raises(PluginLoadError, match=r"package 'broken'.*nowhere"):
        registry.resolve("regularizers", "b")


def test_plugin_of_another_kind_is_refused(install):
    install("mine", "mine_kind", MINE, {"decompositions": {"odd": "mine_kind:Mine"}})
    with pytest.raises(PluginTypeError, match=r"protocols.Decomposition; got the class Mine"):
        registry.resolve("decompositions", "odd")


def test_class_instead_of_instance_says_so():
    with pytest.raises(PluginTypeError, match="pass an instance of it, not the class"):
        registry.resolve("decompositions", SVD)


def test_checkout_that_was_never_installed_says_to_install_it(tmp_path):
    source = Path(skcompress.__file__).parent
    (tmp_path / "skcompress").symlink_to(source)
    # Without site-packages of skcompress: hide its metadata from importlib.metadata.
    code = f"""
import sys, importlib.metadata as md
sys.path.insert(0, {str(tmp_path)!r})
real = md.distribution
def hidden(name):
    if name == "skcompress":
        raise md.PackageNotFoundError(name)
    return real(name)
md.distribution = hidden
from skcompress import registry
try:
    registry.names("regularizers")
except registry.NotInstalledError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install -e ." in done.stdout


def test_not_installed_is_a_runtime_error():
    assert issubclass(NotInstalledError, RuntimeError)
