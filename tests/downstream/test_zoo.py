"""The ten networks: sizes, channels, seeds."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from mgdm_ray.config import NETWORKS, DownstreamConfig, InputError
from mgdm_ray.downstream.fit import fit
from mgdm_ray.downstream.zoo import FIRST_CONV, build_network

LIGHT = ("squeezenet1_1", "mobilenet_v2")


@pytest.mark.parametrize("name", NETWORKS)
def test_learns_a_separable_toy_at_28_pixels(name: str) -> None:
    """Catches a network that cannot learn: dead first layer, detached head, collapsed maps.

    Dark against bright images; the loss must fall in a few small steps.
    """
    steps = 12 if name in ("squeezenet1_1", "alexnet") else 6
    labels = torch.arange(8) % 2
    images = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 0.1
    images += (labels * 1.6 - 0.8).view(-1, 1, 1, 1)
    network = build_network(name, 2, 1, 28, "toy", 0)
    config = DownstreamConfig(steps=steps, batch_size=8, learning_rate=5e-4)
    history = fit(network, images, labels, {}, config, 2, ("toy", 0)).history
    losses = [row["loss"] for row in history]
    assert sum(losses[-2:]) / 2 < 0.9 * losses[0], losses


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [16, 24, 32])
def test_small_images_and_batches_of_two_train(name: str, size: int) -> None:
    """Catches maps that vanish below 1x1 or a head that does not fit the last map."""
    network = build_network(name, 3, 3, size, "size", 0).train()
    with torch.no_grad():
        assert network(torch.rand(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [64, 128, 224])
def test_large_images_keep_shapes(name: str, size: int) -> None:
    """Catches adaptations that break larger images; shapes only, nothing is computed."""
    network = build_network(name, 7, 1, size, "size", 0).to("meta")
    assert network(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvisions_own_network_from_224_pixels(name: str) -> None:
    """Catches an adaptation that reaches full-size images: parameters must be torchvision's."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        expected = get_model(name, weights=None, num_classes=5, **options)
    ours = build_network(name, 5, 3, 224, "full", 0)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }
    conv = ours.get_submodule(FIRST_CONV[name])
    reference = expected.get_submodule(FIRST_CONV[name])
    assert isinstance(conv, torch.nn.Conv2d)
    assert isinstance(reference, torch.nn.Conv2d)
    assert conv.stride == reference.stride


@pytest.mark.parametrize("name", ["alexnet", "vgg16_bn"])
def test_weights_built_without_storage_are_all_initialised(name: str) -> None:
    """Catches a parameter left as uninitialised memory: two builds must agree and be tame."""
    one, two = (build_network(name, 4, 3, 28, "init", 3).state_dict() for _ in range(2))
    for key, value in one.items():
        assert torch.equal(value, two[key]), key
        assert value.isfinite().all(), key
        assert value.abs().max() <= 2, key
    assert all(v.std() > 0 for k, v in one.items() if k.endswith("weight") and v.ndim > 1)


@pytest.mark.parametrize("name", LIGHT)
def test_grey_equals_the_same_image_in_three_channels(name: str) -> None:
    """Catches a first convolution with another gain for grey images."""
    grey, colour = (build_network(name, 3, c, 28, "grey", 1).eval() for c in (1, 3))
    x = torch.rand(2, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*LIGHT, "alexnet"])
def test_weights_follow_the_seed_and_nothing_else(name: str) -> None:
    """Catches weights that depend on, or disturb, the global random state."""
    before = torch.get_rng_state()
    one = build_network(name, 2, 1, 28, "cell", "p", 0)
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.rand(5)
        two = build_network(name, 2, 1, 28, "cell", "p", 0)
    other = build_network(name, 2, 1, 28, "cell", "p", 1)
    w1, w2, w3 = (
        m.get_submodule(FIRST_CONV[name]).state_dict()["weight"] for m in (one, two, other)
    )
    assert torch.equal(w1, w2)
    assert not torch.equal(w1, w3)


def test_unknown_name_is_refused_with_a_suggestion() -> None:
    """Catches a bare KeyError for a typing error."""
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        build_network("resnet19", 2, 1, 28, "x")


@pytest.mark.parametrize(("classes", "channels", "size"), [(1, 1, 28), (2, 4, 28), (2, 1, 4)])
def test_impossible_shapes_are_refused(classes: int, channels: int, size: int) -> None:
    """Catches a network that fails only once it is trained."""
    with pytest.raises(ValueError, match="needs 1 or 3 channels"):
        build_network("resnet18", classes, channels, size, "x")
