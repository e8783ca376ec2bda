"""Who may import whom: the rooms of the package, read from the source and from a running plan."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "mgdm_ray"
COMMANDS = {"__init__", "__main__", "study", "sample", "doctor", "move", "data/__main__"}
LEAVES = {"seeding", "precision", "provenance", "environment", "templates"}
ORDER = [
    "commands",
    "cli",
    "results",
    "runtime",
    "pipeline",
    "diffusion",
    "classifiers",
    "evaluation",
    "data",
    "storage",
    "config",
    "leaves",
]
"""A room imports itself and those after it."""
ONLY = {"ray": {"runtime"}, "mlflow": {"results/mlflow"}, "optuna": {"runtime"}}
"""Library -> the only places that may import it, anywhere in a file."""
WITHOUT_TORCH = ("cli", "results/report", "results/mlflow", "storage", "config")

MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix(): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module: str) -> str:
    if module in COMMANDS:
        return "commands"
    first = module.split("/")[0]
    return "leaves" if first in LEAVES else first


def imported(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Dotted names that a file imports: everywhere, or only while it is being imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def ours(names: Iterator[str]) -> set[str]:
    """Those of ``names`` that are modules of the package, as keys of MODULES."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != "mgdm_ray":
            continue
        for end in (len(parts), len(parts) - 1):
            path = "/".join(parts[1:end])
            hit = next((m for m in (path, f"{path}/__init__".lstrip("/")) if m in MODULES), None)
            if hit:
                found.add(hit)
                break
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upward(module: str) -> None:
    """Would catch the data room learning of jobs, or a leaf that is none any more."""
    here = room(module)
    assert here in ORDER, f"{module} is in a new room: give it a place in ORDER"
    above = {m for m in ours(imported(MODULES[module])) if ORDER.index(room(m)) < ORDER.index(here)}
    # The version stands in the package itself.
    assert not above - {"__init__"}, f"{module} imports upward: {sorted(above)}"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module: str) -> None:
    """Would catch Ray outside of runtime, or torch in what writes reports."""
    libraries = {name.split(".")[0] for name in imported(MODULES[module])}
    for library, homes in ONLY.items():
        assert library not in libraries or module.startswith(tuple(homes))
    if module.startswith(WITHOUT_TORCH):
        assert not {"torch", "torchvision", "monai"} & libraries


def test_modules_import_each_other_in_no_circle() -> None:
    """Would catch two modules that can only be understood together."""
    graph = {m: ours(imported(p, top_level=True)) - {m, "__init__"} for m, p in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_planning_imports_no_heavy_library(tmp_path: Path) -> None:
    """Would catch a plan that takes seconds because something on its way imports torch."""
    code = (
        "import sys\n"
        "from mgdm_ray import study\n"
        f"code = study.main(['studies/quickstart.yaml', '--plan', '--storage', r'{tmp_path}'])\n"
        "assert code == 0, code\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'monai', 'optuna'} & set(sys.modules)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"


def test_nothing_loads_code_from_files() -> None:
    """Would catch pickle, torch.load, eval and unsafe YAML slipping in."""
    forbidden = {"pickle", "torch.load", "marshal", "shelve", "dill", "joblib"}
    for path in MODULES.values():
        assert not {n for n in imported(path) if n.split(".")[0] in forbidden}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in {"eval", "exec", "yaml.unsafe_load"}, path
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert call != "torch.load" or keywords.get("weights_only") == "True", path
                assert keywords.get("allow_pickle", "False") == "False", path
