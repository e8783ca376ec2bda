"""Who may import whom (the parts of the architecture), read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "mgdm_ray"
FILES = sorted(PACKAGE.rglob("*.py"))

# part -> the parts of ours it may import (itself always)
LEAVES = (
    "config",
    "environment",
    "fidelity",
    "files",
    "precision",
    "progress",
    "provenance",
    "seeding",
    "stats",
    "timeline",
)
ALLOWED: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "claims": {"files"},
    "records": {"files"},
    "store": {"files"},
    "remote": {"claims", "files", "store"},
    "move": {"config", "files", "places", "price", "store"},
    "places": {"config", "data", "networks", "price", "remote", "seeding", "store"},
    "journal": {"remote"},
    "data": {"config", "files", "remote", "seeding"},
    "inspection": {"config", "data", "environment", "files", "plan"},
    "diffusion": {"config", "precision", "seeding"},
    "downstream": {"config", "precision", "seeding"},
    "plan": {"config", "seeding"},
    "price": {"config", "plan", "records", "store"},
    "plan_view": {
        "config",
        "gates",
        "jobs",
        "plan",
        "price",
        "records",
        "remote",
        "resolution",
        "store",
        "timeline",
    },
    "resolution": {"config", "stats"},
    "networks": {"config", "data", "remote"},
    "plugins": {"config", "diffusion"},
    "take_away": {
        "config",
        "data",
        "diffusion",
        "gates",
        "jobs",
        "networks",
        "places",
        "plan",
        "provenance",
        "records",
        "store",
        "warm_start",
    },
    "sample": {"config", "data", "diffusion", "plugins", "remote", "take_away"},
    "proposals": {"config", "plan", "seeding"},
    "importance": {"plan", "proposals"},
    "selection": {"stats"},
    "standing": {"config", "gates", "jobs", "plan", "records", "store"},
    "jobs": {
        "config",
        "data",
        "diffusion",
        "downstream",
        "fidelity",
        "files",
        "networks",
        "plan",
        "provenance",
        "records",
        "remote",
        "seeding",
        "selection",
        "store",
    },
    "gates": {"config", "records"},
    "agenda": {"config", "gates", "jobs", "plan", "records"},
    "warm_start": {"config", "records"},
    "doctor": {"config", "data", "environment", "places", "precision", "remote", "tracking"},
    "next_steps": {"config", "records", "stats"},
    "closing": {
        "config",
        "data",
        "jobs",
        "next_steps",
        "plan",
        "provenance",
        "records",
        "report",
        "resolution",
        "seeding",
        "store",
        "tracking",
    },
    "engine": {
        "agenda",
        "claims",
        "config",
        "environment",
        "jobs",
        "plan",
        "price",
        "records",
        "search",
        "store",
        "training",
    },
    "training": {"config", "diffusion", "jobs", "plan", "records", "store"},
    "search": {
        "config",
        "data",
        "importance",
        "jobs",
        "journal",
        "plan",
        "proposals",
        "records",
        "remote",
        "store",
    },
    "tracking": {"records"},
    "tables": {"records", "stats"},
    "figures": {"records", "stats", "tables"},
    "report": {"records", "selection", "stats", "tables", "figures"},
}
# library -> the only parts that may import it, anywhere in a file
ONLY = {
    "ray": {"engine", "training", "search"},
    "mlflow": {"tracking"},
    "optuna": {"importance", "journal", "proposals", "search"},
}
WITHOUT_TORCH = {
    *LEAVES,
    "agenda",
    "claims",
    "closing",
    "gates",
    "inspection",
    "networks",
    "next_steps",
    "places",
    "plan",
    "plan_view",
    "plugins",
    "price",
    "records",
    "remote",
    "store",
    "report",
    "resolution",
    "standing",
    "tables",
    "figures",
    "tracking",
    "study",
    "take_away/finished",
    "take_away/labelled_folder",
    "take_away/model_card",
    "take_away/models_file",
    "warm_start",
} - {"precision", "seeding"}
"""Parts, or modules of parts, that must be quick to import."""


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Every dotted module name that the file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_parts_import_only_what_they_may(path: Path) -> None:
    """Would catch data and diffusion growing together, or a leaf that is none any more."""
    here, names = part(path), imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("mgdm_ray.")}
    if path == PACKAGE / "data" / "__main__.py":  # starts the commands that look at data
        assert ours == {"inspection"}
    elif here not in ("study", "__init__"):
        assert here in ALLOWED, f"{path} is a new part: say here what it may import"
        assert ours - {here, "__version__"} <= ALLOWED[here]
    assert "study" not in ours
    for library, homes in ONLY.items():
        users = {name.split(".")[0] for name in names}
        allowed = here in homes or (library == "ray" and path.name == "study.py")
        assert library not in users or allowed, f"{library} belongs into {homes}"
    module = str(path.relative_to(PACKAGE).with_suffix(""))
    if {here, module} & WITHOUT_TORCH:
        assert not {"torch", "torchvision", "monai"} & {name.split(".")[0] for name in names}


def test_nothing_loads_code_from_files() -> None:
    """Would catch pickle, torch.load, eval and unsafe YAML slipping in."""
    forbidden = {"pickle", "torch.load", "marshal", "shelve", "dill", "joblib"}
    for path in FILES:
        names = imported(path)
        assert not {n for n in names if n.split(".")[0] in forbidden}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in {"eval", "exec", "yaml.unsafe_load"}, path
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert call != "torch.load" or keywords.get("weights_only") == "True", path
                assert keywords.get("allow_pickle", "False") == "False", path
