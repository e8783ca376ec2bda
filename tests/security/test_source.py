"""What our source never calls: loaders that run code, shells, unpackers that follow names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

CALLS = {
    "eval", "exec", "compile", "torch.load", "torch.hub.load", "torch.jit.load", "os.system",
    "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "np.load",
    "numpy.load", "pd.read_pickle", "joblib.load", "tempfile.mktemp",
}  # fmt: skip
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "tarfile"}
LOADERS = ("monai.bundle", "monai.apps.auto3dseg", "torch.hub.load_state_dict_from_url")
FILES = sorted((ROOT / "mgdm_ray").rglob("*.py"))


def faults(source: str) -> Iterator[str]:
    """Each forbidden thing in ``source``, in words."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in MODULES or name.startswith(LOADERS) or name in CALLS:
                yield f"imports {name}"
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if call in CALLS or call.endswith((".extractall", ".extract")):
                yield f"calls {call}"
            if given.get("shell", "False") != "False":
                yield "starts a shell"
            if given.get("allow_pickle", "False") != "False":
                yield "allows pickles"
            if given.get("weights_only", "True") != "True":
                yield "loads more than weights"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_dangerous_is_called(path: Path) -> None:
    """Would catch a loader that runs code from a file, anywhere in the package."""
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch import load",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "zipfile.ZipFile(path).extractall(folder)",
        "subprocess.run(command, shell=True)",
        "from monai.bundle import load",
        "from torch.hub import load_state_dict_from_url",
        "eval(text)",
    ],
)
def test_the_test_sees_them(line: str) -> None:
    """Would catch a rule above that no longer looks."""
    assert list(faults(line))
