"""What is known about datasets before their pixels are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mgdm_ray.config import MEDMNIST, PHANTOMS, DatasetConfig, InputError
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.npz import MEDMNIST_SIZES, npz_path


def test_table_equals_medmnist() -> None:
    """Catches a class order, licence, md5 or URL that was mistyped or that MedMNIST changed."""
    from medmnist import INFO

    tasks = {"multi-class": "multiclass", "binary-class": "binary", "ordinal-regression": "ordinal"}
    for name in MEDMNIST:
        for size in MEDMNIST_SIZES:
            official = INFO[name]
            suffix = "" if size == 28 else f"_{size}"
            info = dataset_info(DatasetConfig(name=name, size=size), None)
            assert info.classes == tuple(official["label"][str(k)] for k in range(info.num_classes))
            assert info.num_classes == len(official["label"])
            assert info.channels == official["n_channels"]
            assert info.task == tasks[official["task"]]
            assert info.licence == official["license"]
            assert info.url == official["url" + suffix]
            assert info.md5 == official["MD5" + suffix]


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_have_no_file(name: str) -> None:
    """Catches a phantom that some code would try to download or find on disk."""
    config = DatasetConfig(name=name)
    info = dataset_info(config, None)
    assert info.url is None
    assert info.md5 is None
    assert info.num_classes >= 2
    with pytest.raises(InputError, match=name):
        npz_path(config, None)


def test_own_file_is_described_by_its_labels(tmp_path: Path) -> None:
    """Catches classes sorted as text ("10" before "2") and a wrong default task."""
    labels = np.arange(24) % 12
    np.savez(
        tmp_path / "own.npz", train_images=np.zeros((24, 8, 8, 3), np.uint8), train_labels=labels
    )
    info = dataset_info(DatasetConfig(name="mine", path="own.npz", size=8), tmp_path)
    assert info.classes == tuple(str(k) for k in range(12))
    assert (info.task, info.channels) == ("multiclass", 3)
    ordinal = DatasetConfig(name="mine", path="own.npz", size=8, task="ordinal")
    assert dataset_info(ordinal, tmp_path).task == "ordinal"
    binary = DatasetConfig(name="mine", path="own.npz", size=8, task="binary")
    with pytest.raises(InputError, match=r"'binary'.*12"):
        dataset_info(binary, tmp_path)


def test_size_that_medmnist_does_not_have() -> None:
    """Catches a study that would fail only when the first job looks for breastmnist_32.npz."""
    with pytest.raises(InputError, match="28, 64, 128, 224"):
        dataset_info(DatasetConfig(name="breastmnist", size=32), None)


def test_no_torch_before_pixels() -> None:
    """Catches an import that would make planning pay seconds for torch."""
    code = (
        "import sys\n"
        "from mgdm_ray.config import DatasetConfig\n"
        "from mgdm_ray.data import checks, info, load, mix\n"
        "c = DatasetConfig(name='phantom-xray')\n"
        "load.data_source(c).check(); info.dataset_info(c, None)\n"
        "load.data_source(c).fingerprint()\n"
        "print([m for m in ('torch', 'ray', 'medmnist', 'scipy') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
