"""Weights learned elsewhere: what is taken over, what stays fresh, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.classifiers.pretrained import MEAN, STD, Rescale
from mgdm_ray.config import InputError


def saved(tmp_path: Path, name: str, **change: torch.Tensor) -> Path:
    """A file with the weights of a colour network of 1000 classes, and that network's weights."""
    state = build_network(name, 1000, 3, 224, "elsewhere").state_dict() | change
    path = tmp_path / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def body_of(network: torch.nn.Module) -> torch.nn.Module:
    """The network behind what rescales its images."""
    assert isinstance(network, torch.nn.Sequential)
    return network[-1]


def test_all_but_the_last_layer_is_taken_over(tmp_path: Path) -> None:
    """Catches a head of ImageNet's classes, and weights that are silently fresh."""
    path = saved(tmp_path, "resnet18")
    theirs = build_network("resnet18", 1000, 3, 224, "elsewhere").state_dict()
    fresh = build_network("resnet18", 5, 3, 28, "cell").state_dict()
    ours = body_of(build_network("resnet18", 5, 3, 28, "cell", pretrained=path)).state_dict()
    assert torch.equal(ours["fc.weight"], fresh["fc.weight"])
    assert ours["fc.weight"].shape == (5, 512)
    for key in ours:
        if not key.startswith("fc.") and "batches" not in key:
            assert torch.equal(ours[key], theirs[key]), key
    assert not torch.equal(ours["conv1.weight"], fresh["conv1.weight"])


def test_a_grey_network_gets_the_sum_over_the_colours(tmp_path: Path) -> None:
    """Catches one colour's weights in place of the sum: another gain on grey images."""
    path = saved(tmp_path, "squeezenet1_1")
    theirs = build_network("squeezenet1_1", 1000, 3, 224, "elsewhere").state_dict()
    ours = body_of(build_network("squeezenet1_1", 2, 1, 28, "cell", pretrained=path)).state_dict()
    first = "features.0.weight"
    torch.testing.assert_close(ours[first], theirs[first].sum(1, keepdim=True))


def test_layers_of_another_shape_stay_fresh(tmp_path: Path) -> None:
    """Catches a crash at small sizes, where alexnet's first linear layer is another one."""
    path = saved(tmp_path, "alexnet")
    fresh = build_network("alexnet", 2, 3, 28, "cell").state_dict()
    ours = body_of(build_network("alexnet", 2, 3, 28, "cell", pretrained=path)).state_dict()
    for part in ("weight", "bias"):
        assert torch.equal(ours[f"classifier.1.{part}"], fresh[f"classifier.1.{part}"])


def test_images_are_scaled_as_the_weights_want_them() -> None:
    """Catches ImageNet's normalisation of images in [0, 1] on images in [-1, 1].

    By hand: -1 is black, 0, and becomes (0 - 0.485) / 0.229; 1 is white.
    """
    colour = Rescale(MEAN, STD, 3)
    black, white = (colour(torch.full((1, 3, 1, 1), value)) for value in (-1.0, 1.0))
    assert black[0, 0, 0, 0].item() == pytest.approx(-0.485 / 0.229, rel=1e-5)
    assert white[0, 2, 0, 0].item() == pytest.approx((1 - 0.406) / 0.225, rel=1e-5)
    assert Rescale(MEAN, STD, 1)(torch.zeros(1, 1, 1, 1)).shape == (1, 1, 1, 1)


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    """Catches a file under a wrong name, of which nothing fits and all would stay fresh."""
    path = saved(tmp_path, "resnet18").rename(tmp_path / "googlenet.safetensors")
    with pytest.raises(InputError, match="googlenet"):
        build_network("googlenet", 2, 3, 28, "cell", pretrained=path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """Catches a traceback for a download that was cut short."""
    path = tmp_path / "resnet18.safetensors"
    path.write_bytes(b"no weights at all")
    with pytest.raises(InputError, match=path.name):
        build_network("resnet18", 2, 3, 28, "cell", pretrained=path)


@pytest.mark.network
def test_the_hub_gives_weights() -> None:
    """Catches a name of torchvision's weights that has changed."""
    try:
        network = build_network("squeezenet1_1", 2, 3, 28, "cell", pretrained="hub")
    except InputError as error:
        assert "downstream.pretrained" in str(error)  # noqa: PT017
        pytest.skip("the hub cannot be reached from here")
    assert network(torch.zeros(1, 3, 28, 28)).shape == (1, 2)
