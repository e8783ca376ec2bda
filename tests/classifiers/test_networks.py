"""The ten networks and the others: sizes, channels, seeds."""

from __future__ import annotations

import pytest
import torch
from torchvision import models
from torchvision.models import get_model

from mgdm_ray.classifiers.fit import Recipe, fit
from mgdm_ray.classifiers.networks import _torchvision, build_network, first_conv, working_size
from mgdm_ray.classifiers.pretrained import last_layer
from mgdm_ray.config import NETWORKS, TORCHVISION, InputError, PhantomConfig, Training
from mgdm_ray.data.load import to_tensor
from mgdm_ray.data.phantoms import draw_split

STEPS = {"alexnet": 24, "squeezenet1_1": 60}
"""Steps until the loss has fallen, where it takes more than 8: neither has batch norm."""
LIGHT = ("squeezenet1_1", "mobilenet_v2")
FAST = ("resnet18", "googlenet", "mobilenet_v2")


PHANTOM = PhantomConfig(train=20, val=10, test=10, difficulty=0.0)


def phantom(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """16 training images of 28 px and their labels, whose signs of disease are plain."""
    images, labels = draw_split(name, PHANTOM, 28, "train")
    return to_tensor(images[:16]), torch.from_numpy(labels[:16])


# Large networks are slow in grey: one piece of code adapts the first layer of all of them.
GREY = [
    pytest.param(name, "phantom-ultrasound", 1, 2, marks=() if name in FAST else pytest.mark.slow)
    for name in NETWORKS
]
LARGE = ("alexnet", "vgg16_bn", "resnet50", "resnext50_32x4d", "densenet121")
COLOUR = [
    pytest.param(name, "phantom-fundus", 3, 5, marks=pytest.mark.slow if name in LARGE else ())
    for name in NETWORKS
]


@pytest.mark.parametrize(("name", "dataset", "channels", "classes"), [*GREY, *COLOUR])
def test_the_loss_falls_on_a_phantom(name: str, dataset: str, channels: int, classes: int) -> None:
    """Catches a network that cannot learn: dead first layer, detached head, collapsed maps.

    The whole of 16 images in every batch: there is no luck in which ones come.
    """
    images, labels = phantom(dataset)
    network = build_network(name, classes, channels, 28, "phantom", 0)
    for module in network.modules():
        if name == "alexnet" and isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its luck differs between processors
    config = Training(steps=STEPS.get(name, 8), batch_size=16, learning_rate=5e-4)
    history = fit(network, images, labels, Recipe(config, classes, ("phantom", 0))).history
    losses = [row["loss"] for row in history]
    assert sum(losses[-2:]) < 0.85 * sum(losses[:2]), losses


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
    assert first_conv(ours).stride == first_conv(expected).stride


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
    w1, w2, w3 = (first_conv(network).weight for network in (one, two, other))
    assert torch.equal(w1, w2)
    assert not torch.equal(w1, w3)


def test_unknown_name_is_refused_with_a_suggestion() -> None:
    """Catches a bare KeyError for a typing error."""
    with pytest.raises(InputError, match="resnet18"):
        build_network("resnet19", 2, 1, 28, "x")


@pytest.mark.parametrize(("classes", "channels", "size"), [(1, 1, 28), (2, 4, 28), (2, 1, 4)])
def test_impossible_shapes_are_refused(classes: int, channels: int, size: int) -> None:
    """Catches a network that fails only once it is trained."""
    with pytest.raises(ValueError, match="channels"):
        build_network("resnet18", classes, channels, size, "x")


def test_the_known_names_are_torchvisions() -> None:
    """Catches a release of torchvision whose networks the study file refuses."""
    assert set(models.list_models(module=models)) == set(TORCHVISION)


@pytest.mark.parametrize(
    ("name", "size", "works_at"),
    [
        ("resnet34", 28, 28),
        ("mobilenet_v3_small", 16, 24),
        ("vgg11", 28, 64),
        ("vgg11", 128, 128),
        ("inception_v3", 28, 96),
        ("maxvit_t", 28, 224),
        ("maxvit_t", 225, 448),
        ("vit_b_16", 28, 64),
        ("vit_b_16", 100, 112),
        ("vit_h_14", 28, 70),
        ("resnet18", 28, 28),
        ("resnet18", 16, 24),
    ],
)
def test_what_small_images_are_enlarged_to(name: str, size: int, works_at: int) -> None:
    """Catches another table than the one in the documentation."""
    assert working_size(name, size) == works_at


@pytest.mark.parametrize(
    "name", ["resnet34", "mobilenet_v3_small", "shufflenet_v2_x0_5", "inception_v3", "vit_b_32"]
)
def test_other_networks_train_on_small_images(name: str) -> None:
    """Catches maps that vanish, auxiliary outputs, and patches that do not fit the image."""
    for channels, size in ((1, 28), (3, 72)):
        network = build_network(name, 3, channels, size, "other", 0).train()
        logits = network(torch.rand(2, channels, size, size))
        assert logits.shape == (2, 3)
        logits.sum().backward()
        assert all(p.grad is not None for p in network.parameters())


META = [n for n in TORCHVISION if n not in NETWORKS and not n.startswith("regnet")]


@pytest.mark.parametrize("name", META)
@pytest.mark.parametrize("size", [28, 224])
def test_every_network_of_torchvision_takes_every_size(name: str, size: int) -> None:
    """Catches a network whose maps vanish or whose windows do not fit; nothing is computed.

    RegNet cannot be built without storage; its maps are those of a ResNet.
    """
    with torch.device("meta"):
        network = _torchvision(name, 7, working_size(name, size))
    side = working_size(name, size)
    assert network(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)
    assert (
        network.get_submodule(last_layer(network))
        is [
            m
            for m in network.modules()
            if 7 in (getattr(m, f, 0) for f in ("out_features", "out_channels"))
        ][-1]
    )


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/vit_tiny_patch16_224", "timm/levit_128"])
def test_networks_of_timm(name: str) -> None:
    """Catches a fixed image size that small images cannot have, and a seed that is not theirs."""
    pytest.importorskip("timm", reason="timm is optional")
    for channels, size in ((1, 28), (3, 96)):
        before = torch.get_rng_state()
        one, two = (build_network(name, 3, channels, size, "timm", 0) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
        assert one.train()(torch.rand(2, channels, size, size)).shape == (2, 3)
        same = zip(one.parameters(), two.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in same)


def test_a_timm_network_that_only_takes_its_own_size() -> None:
    """Catches a failure in the middle of a study: crossvit_tiny_240 is not built for 64 px."""
    pytest.importorskip("timm", reason="timm is optional")
    network = build_network("timm/crossvit_tiny_240", 3, 1, 28, "timm", 0).eval()
    assert network(torch.rand(1, 1, 28, 28)).shape == (1, 3)


@pytest.mark.parametrize("name", ["resnet34", "timm/resnet10t"])
def test_others_learn_a_phantom(name: str) -> None:
    """Catches an enlargement that no gradient or no image passes."""
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="timm is optional")
    images, labels = phantom("phantom-ultrasound")
    config = Training(steps=6, batch_size=16, learning_rate=1e-3)
    network = build_network(name, 2, 1, 28, "phantom", 0)
    losses = [r["loss"] for r in fit(network, images, labels, Recipe(config, 2, ("p",))).history]
    assert sum(losses[-2:]) < 0.85 * sum(losses[:2]), losses
