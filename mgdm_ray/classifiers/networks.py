"""Downstream networks: ten of torchvision's, adapted to small images, and any other by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models import get_model

from mgdm_ray.classifiers.pretrained import MEAN, STD, WANT_OURS, Rescale, Source, use_pretrained
from mgdm_ray.config import NETWORKS, TIMM, InputError, known_network
from mgdm_ray.seeding import derive_seed

SMALL = 64
"""Below so many pixels stems are adapted."""
SMALLEST = 24
"""Smaller images are enlarged (bilinearly) to this."""
VGG_EXACT = 32
"""Below so many pixels VGG's pools round up: its five halvings would leave nothing."""

STRIDE_ONE = ("alexnet", "squeezenet1_1", "mobilenet_v2")
"""Below SMALL, their first convolution moves by 1 instead of 4 or 2."""
NO_MAX_POOL = {"densenet121": "features.pool0"}
"""Below SMALL, the max-pool of the stem that is left out."""
WIDE_HEAD = ("alexnet", "vgg16_bn")
"""Their first linear layer reads the last map as a vector, and is resized for small images."""
LIKE_THE_TEN = (
    "efficientnet",
    "mnasnet",
    "mobilenet",
    "resnet",
    "resnext",
    "shufflenet",
    "wide_resnet",
)
"""Prefixes of networks that work with SMALLEST pixels and their own stem."""
OTHERS_SMALLEST = 64
"""All other networks: smaller images are enlarged to this."""
AT_LEAST = {"inception_v3": 96}
"""Networks whose maps vanish at OTHERS_SMALLEST."""
MULTIPLE_OF = {
    "maxvit_t": 224,
    "vit_b_16": 16,
    "vit_b_32": 32,
    "vit_h_14": 14,
    "vit_l_16": 16,
    "vit_l_32": 32,
}
"""Networks that cut images into patches or windows: images are enlarged to a multiple."""
WITHOUT_AUXILIARY = ("googlenet", "inception_v3")
"""Built without auxiliary heads, which need large maps, and with torch's default initialisation."""


def build_network(
    name: str,
    num_classes: int,
    channels: int,
    size: int,
    *seed_parts: str | int | float | bool,
    pretrained: Source | None = None,
) -> nn.Module:
    """A network: float32 [N, channels, size, size] in [-1, 1] -> [N, num_classes] logits.

    ``name`` is one of ``config.NETWORKS``, any other classification model of torchvision, or
    ``timm/NAME``; ``channels`` 1 or 3, ``size`` at least 8 pixels. What differs from torchvision's
    networks, and why: docs/networks.md. Weights are a function of ``seed_parts``, and the global
    random state is left as it was; with ``pretrained`` (``"hub"`` or a file) only the last layer
    and what was adapted are fresh. Batch norm needs batches of 2 in training mode. InputError for
    an unknown name or unavailable weights, ValueError for sizes or counts out of range.
    """
    try:
        known_network(name)
    except ValueError as error:
        raise InputError(str(error)) from error
    if channels not in (1, 3) or size < 8 or num_classes < 2:
        raise ValueError(
            "needs 1 or 3 channels, size >= 8 and num_classes >= 2; "
            f"got {channels}, {size} and {num_classes}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*seed_parts))
        if name.startswith(TIMM):
            from mgdm_ray.classifiers.timm_networks import build_timm  # an optional package

            return build_timm(name, num_classes, channels, size, OTHERS_SMALLEST, pretrained)
        works_at = working_size(name, size)
        network = _torchvision(name, num_classes, works_at)
    if channels == 1:
        _to_grey(first_conv(network))
    before: list[nn.Module] = []
    if works_at != size:
        before.append(nn.Upsample(size=works_at, mode="bilinear"))
    if pretrained is not None:
        use_pretrained(network, name, pretrained)
        if name not in WANT_OURS:
            before.append(Rescale(MEAN, STD, channels))
    return nn.Sequential(*before, network) if before else network


def working_size(name: str, size: int) -> int:
    """To how many pixels images of ``size`` are enlarged for a network of torchvision."""
    if name in NETWORKS or name.startswith(LIKE_THE_TEN):
        return max(size, SMALLEST)
    least, step = AT_LEAST.get(name, OTHERS_SMALLEST), MULTIPLE_OF.get(name, 1)
    return -(-max(size, least) // step) * step


def first_conv(network: nn.Module) -> nn.Conv2d:
    """The layer that sees the image."""
    return next(m for m in network.modules() if isinstance(m, nn.Conv2d))


def _torchvision(name: str, num_classes: int, size: int) -> nn.Module:
    if name in WIDE_HEAD:
        return _wide_head(name, num_classes, size)
    options: dict[str, Any] = {}
    if name in WITHOUT_AUXILIARY:
        options = {"aux_logits": False, "init_weights": False}
    elif name.startswith("vit_"):
        options = {"image_size": size}
    elif name == "maxvit_t":
        options = {"input_size": (size, size)}
    network: nn.Module = get_model(name, weights=None, num_classes=num_classes, **options)
    _adapt_stem(network, name, size)
    return network


def _adapt_stem(network: nn.Module, name: str, size: int) -> None:
    if size < SMALL and name in STRIDE_ONE:
        first_conv(network).stride = (1, 1)
    if size < SMALL and name in NO_MAX_POOL:
        network.set_submodule(NO_MAX_POOL[name], nn.Identity())
    if size < VGG_EXACT and name == "vgg16_bn":
        for module in network.modules():
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True


def _wide_head(name: str, num_classes: int, size: int) -> nn.Module:
    """AlexNet or VGG with a first linear layer that fits the last map.

    Built without storage and initialised after the exchange: drawing the weights that are thrown
    away takes seconds. Linear layers get torch's default initialisation: VGG's N(0, 0.01) is meant
    for 25,088 inputs, and the signal would fade with 512.
    """
    with torch.device("meta"):
        network: nn.Module = get_model(name, weights=None, num_classes=num_classes)
        _adapt_stem(network, name, size)
        maps = network.get_submodule("features")(torch.empty(1, 3, size, size))
        side = int(maps.shape[-1])
        classifier = network.get_submodule("classifier")
        assert isinstance(classifier, nn.Sequential)
        index = next(i for i, layer in enumerate(classifier) if isinstance(layer, nn.Linear))
        classifier[index] = nn.Linear(int(maps.shape[1]) * side**2, 4096)
        network.avgpool = nn.AdaptiveAvgPool2d(side)
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
        if name == "vgg16_bn" and isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


def _to_grey(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(conv.weight.detach().sum(dim=1, keepdim=True))
    conv.in_channels = 1
