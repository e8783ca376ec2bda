"""Which networks compute in bfloat16, and that little changes where they do."""

from __future__ import annotations

import pytest
import torch

from mgdm_ray import precision
from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.config import NETWORKS, DownstreamConfig

CPU = torch.device("cpu")


def test_depthwise_networks_stay_in_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rule that slows networks down, or that a setting given by hand cannot override."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)  # noqa: ARG005
    networks = {name: build_network(name, 2, 1, 28, "precision") for name in NETWORKS}
    chosen = {
        name: precision.precision_of(network, "auto", CPU) for name, network in networks.items()
    }
    assert {n for n, p in chosen.items() if p == "float32"} == {"mobilenet_v2", "efficientnet_b0"}
    assert precision.precision_of(networks["mobilenet_v2"], "bfloat16", CPU) == "bfloat16"
    assert precision.precision_of(networks["resnet18"], "float32", CPU) == "float32"


def test_auto_is_float32_where_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches emulated bfloat16 on processors without it."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)  # noqa: ARG005
    network = build_network("squeezenet1_1", 2, 1, 28, "precision")
    assert precision.precision_of(network, "auto", CPU) == "float32"


def test_bfloat16_trains_nearly_as_float32() -> None:
    """Catches autocast that is silently off, and a loss that is computed in bfloat16.

    The first loss is of equal weights on equal images: it may differ by bfloat16's rounding of the
    logits (2**-8 of their size), and not by nothing.
    """
    torch.manual_seed(0)
    images, labels = torch.rand(32, 1, 28, 28) * 2 - 1, torch.arange(32) % 2
    first, probabilities = {}, {}
    for kind in ("float32", "bfloat16"):
        network = build_network("resnet18", 2, 1, 28, "precision")
        config = DownstreamConfig.model_validate({"steps": 2, "batch_size": 16, "precision": kind})
        result = fit(network, images, labels, Recipe(config, 2, ("precision",)), {"val": images})
        first[kind] = result.history[0]["loss"]
        probabilities[kind] = torch.from_numpy(result.probabilities["val"])
        assert all(p.dtype == torch.float32 for p in network.parameters())
    assert first["float32"] != first["bfloat16"]
    assert first["float32"] == pytest.approx(first["bfloat16"], abs=0.02)
    torch.testing.assert_close(probabilities["float32"].sum(1), torch.ones(32).double())
    assert not torch.equal(probabilities["float32"], probabilities["bfloat16"])
