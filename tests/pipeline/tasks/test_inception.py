"""Inception's features where its weights are at hand: here a file of random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import Inception_V3_Weights, inception_v3

from mgdm_ray.pipeline.tasks.inception import inception_features


def test_without_weights_there_are_no_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a download, or random weights taken for trained ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert inception_features([torch.zeros(2, 1, 8, 8)], "cpu") is None
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_features_of_the_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch grey images that do not fit, sets that are mixed up, and weights that are not
    those of the file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    network = inception_v3(weights=None, init_weights=False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    name = Path(Inception_V3_Weights.IMAGENET1K_V1.url).stem
    save_file(network.state_dict(), folder / f"{name}.safetensors")
    grey = torch.rand(2, 1, 28, 28) * 2 - 1
    found = inception_features([grey, torch.cat([grey, grey]).expand(-1, 3, -1, -1)], "cpu")
    assert found is not None
    assert [rows.shape for rows in found] == [(2, 2048), (4, 2048)]
    np.testing.assert_allclose(found[0], found[1][2:], rtol=1e-3, atol=1e-4)
    assert found[0].std() > 0
