"""MONAI's networks without the rest of MONAI, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NETWORKS = """
import pickle, sys
from mgdm_ray.config import UNetConfig
from mgdm_ray.diffusion.parallel import BLOCKS
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
config = UNetConfig(channels=(16, 32), attention=(False, True))
denoiser, guide = build_denoiser(config, 1, 2, 0), build_guide(config, 1, 2, 0)
assert {type(m) for m in denoiser.modules()} >= set(BLOCKS)
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_building_both_networks_imports_nothing_of_the_rest() -> None:
    """Would catch the 8 CPU seconds that ``import monai`` takes in each worker."""
    heavy = "{'monai', 'mlflow', 'matplotlib', 'scipy', 'torchvision', 'torch._dynamo'}"
    assert run(f"{NETWORKS}print(sorted({heavy} & set(sys.modules)))") == "[]\n"


@pytest.mark.slow
def test_monai_itself_then_has_the_same_classes() -> None:
    """Would catch a second copy of the classes, which isinstance and pickles do not recognise."""
    out = run(
        f"{NETWORKS}"
        "again = pickle.loads(pickle.dumps(denoiser))\n"
        "import monai, monai.metrics.fid\n"
        "from monai.networks import nets\n"
        "assert monai.networks.nets is nets and monai.__version__\n"
        "same = type(denoiser) is type(again)\n"
        "print(same and type(denoiser).__base__ is nets.DiffusionModelUNet)\n"
    )
    assert out.splitlines()[-1] == "True"


@pytest.mark.slow
def test_what_was_imported_alone_finds_the_rest_later() -> None:
    """Would catch modules whose ``monai.data`` stays the empty package of the first import: they
    read NIfTI files."""
    out = run(
        f"{NETWORKS}"
        "import numpy as np\n"
        "alone = sys.modules['monai.utils.type_conversion']\n"
        "value, kind, _ = alone.convert_data_type(np.zeros(3), np.ndarray)\n"
        "import monai.data\n"
        "print(kind.__name__, alone.monai.data is monai.data)\n"
    )
    assert out.splitlines()[-1] == "ndarray True"


@pytest.mark.slow
def test_weights_do_not_depend_on_how_monai_was_imported() -> None:
    """Would catch other defaults or another order of parameters, and so other results."""
    code = (
        f"{NETWORKS}import hashlib; h = hashlib.sha256()\n"
        "for n, p in [*denoiser.state_dict().items(), *guide.state_dict().items()]:\n"
        "    h.update(n.encode()); h.update(p.numpy().tobytes())\n"
        "print(h.hexdigest())\n"
    )
    whole = "import monai.networks.nets\n"
    assert run(code) == run(whole + code).splitlines()[-1] + "\n"


def test_a_library_that_cannot_be_loaded_alone_is_imported_whole(tmp_path: Path) -> None:
    """Would catch a version of MONAI whose modules need what their packages compute."""
    (tmp_path / "odd/part").mkdir(parents=True)
    (tmp_path / "odd/__init__.py").write_text("LIMIT = 3\n")
    (tmp_path / "odd/part/__init__.py").write_text("from .module import value\n")
    (tmp_path / "odd/part/module.py").write_text("from odd import LIMIT\nvalue = LIMIT + 1\n")
    out = run(
        f"import sys; sys.path.insert(0, r'{tmp_path}'); before = list(sys.meta_path)\n"
        "from mgdm_ray.diffusion.monai_networks import load_alone\n"
        "load_alone('odd.part.module')\n"
        "assert not [m for m in sys.modules if m.startswith('odd')]\n"
        "assert sys.meta_path == before\n"
        "from odd.part.module import value\n"
        "print(value, sys.modules['odd'].LIMIT)\n"
    )
    assert out == "4 3\n"
