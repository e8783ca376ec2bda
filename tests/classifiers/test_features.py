"""What is taken for a network's features, on small networks whose layers one knows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import Inception_V3_Weights, inception_v3

from mgdm_ray.classifiers.features import View, inception_features, last_layer, look
from mgdm_ray.classifiers.fit import predict
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import NETWORKS


def test_features_are_what_the_last_layer_reads() -> None:
    """Would catch features after it, of another layer of that width, or in another order than the
    images: the logits must follow from them by its weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 3))
    images = torch.randn(150, 3, 2, 2)
    view = look(network, images, 3, "cpu")
    head = network[3]
    assert isinstance(head, nn.Linear)
    logits = torch.from_numpy(view.features) @ head.weight.T + head.bias
    assert view.features.shape == (150, 3)
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), view.probabilities, atol=1e-6)
    np.testing.assert_allclose(view.probabilities, predict(network, images, 3, 64, "cpu"))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_features(name: str) -> None:
    """Would catch a network as judge whose last layer is not found: squeezenet's is a convolution,
    alexnet's follows dropout, others are enlarged first."""
    network = build_network(name, 5, 3, 16, "features")
    view = look(network, torch.zeros(2, 3, 16, 16), 5, "cpu")
    assert view.features.ndim == 2
    assert view.features.shape[1] >= 512
    assert view.probabilities.sum(axis=1) == pytest.approx(1)
    assert not network.training


def test_a_network_without_such_a_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential.*\b4\b"):
        last_layer(nn.Sequential(nn.Linear(4, 3)), 4)


def test_entropy_by_hand() -> None:
    """Would catch bits in place of nats, and NaN where a probability is 0."""
    view = View(np.zeros((3, 1), np.float32), np.array([[1.0, 0], [0.5, 0.5], [0.25, 0.75]]))
    wanted = [0, math.log(2), 0.25 * math.log(4) + 0.75 * math.log(4 / 3)]
    assert view.entropy == pytest.approx(wanted)
    assert view.predicted.tolist() == [0, 0, 1]


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
