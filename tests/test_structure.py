"""The house: imports point one way, functions stay short, nothing shadows a module."""

import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import ROOT

LINE = ["sharding", "train", "eval", "deploy", "pipeline"]
FILES = [path for name in LINE for path in sorted((ROOT / name).rglob("*.py"))]


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or "").partition(".")[0])
    return names


def forbidden_imports(package: str, source: str) -> set[str]:
    """Packages later in the line, and relative imports."""
    later = set(LINE[LINE.index(package) + 1 :]) | {"tests"}
    return {name for name in imported_packages(source) if name in later or name.startswith(".")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_the_line(path: Path) -> None:
    assert not forbidden_imports(path.relative_to(ROOT).parts[0], path.read_text())


def test_the_import_rule_catches_a_wrong_import() -> None:
    assert forbidden_imports("train", "from eval.probe import linear_probe") == {"eval"}
    assert forbidden_imports("train", "from . import masks") == {"."}
    assert not forbidden_imports("eval", "from train.vit import Encoder")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_longer_than_60_lines(path: Path) -> None:
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 60]


@pytest.mark.parametrize(
    ("package", "importers"),
    # MLflow has two halves that share nothing but the store: runs, and the registry of what is taken into use
    [
        ("timm", {"train/vit.py"}),
        ("mlflow", {"train/mlflow_store.py", "train/tracking.py", "train/registry.py"}),
    ],
)
def test_only_one_module_imports(package: str, importers: set[str]) -> None:
    found = {str(path.relative_to(ROOT)) for path in FILES if package in imported_packages(path.read_text())}
    assert found == importers


def test_shards_are_made_without_torch() -> None:
    for name in ("job", "preprocess", "region", "sample", "writer", "manifest", "verify", "order"):
        assert "torch" not in imported_packages((ROOT / "sharding" / f"{name}.py").read_text())


def test_no_module_of_train_shadows_another() -> None:
    taken = set(sys.stdlib_module_names) | {"timm", "torch", "mlflow", "deepspeed", "cv2", "numpy"}
    assert not {path.stem for path in (ROOT / "train").glob("*.py")} & (taken - {"__init__"})


@pytest.mark.parametrize("name", LINE)
def test_packages_are_those_of_this_checkout(name: str) -> None:
    assert Path(str(import_module(name).__file__)).parent == ROOT / name


def test_top_level_is_what_was_agreed() -> None:
    agreed = {"pyproject.toml", "README.md", "LICENSE", "Makefile", *LINE, "tests"}
    made = {"build", "us_jepa.egg-info"}
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - made == agreed
