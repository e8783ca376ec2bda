"""Networks of timm, an optional dependency that only this module builds with."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from mgdm_ray.classifiers.pretrained import Rescale, Source, read_weights, unavailable
from mgdm_ray.config import TIMM, InputError


def build_timm(
    name: str, num_classes: int, channels: int, size: int, smallest: int, pretrained: Source | None
) -> nn.Module:
    """As ``networks.build_network``, with weights drawn from the global generator.

    Images are enlarged to ``smallest`` pixels. A network of a fixed size is built for that size, or
    reads images resized to its own.
    """
    model = name.removeprefix(TIMM)
    facts = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if facts is None:
        raise InputError(f"unknown network {name!r}: timm {timm.__version__} does not have it")
    works_at = max(size, smallest)
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
    if facts.fixed_input_size:
        options["img_size"] = works_at
    if not _works(model, channels, works_at, options):
        works_at = int(facts.input_size[-1])
        options.pop("img_size", None)
    before: list[nn.Module] = []
    if works_at != size:
        before.append(nn.Upsample(size=works_at, mode="bilinear"))
    if pretrained is not None:
        options |= _weights(pretrained)
        before.append(Rescale(facts.mean, facts.std, channels))
    try:
        network: nn.Module = timm.create_model(model, **options)
    except (OSError, RuntimeError, ValueError) as error:
        if pretrained is None:
            raise
        if pretrained == "hub":
            raise unavailable(name, error) from error
        lines = str(error).strip().splitlines()
        raise InputError(
            f"{pretrained}: no weights of {name!r}: {' '.join(lines)[:300]}"
        ) from error
    return nn.Sequential(*before, network) if before else network


def _weights(pretrained: Source) -> dict[str, Any]:
    if pretrained == "hub":
        return {"pretrained": True}
    read_weights(pretrained)  # timm's own error does not name the file
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(pretrained)}}


def _works(model: str, channels: int, size: int, options: dict[str, Any]) -> bool:
    """Whether the network takes an image of ``size``; not every fixed size can be chosen."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        try:
            network = timm.create_model(model, **options).eval()
            network(torch.zeros(1, channels, size, size))
        except (RuntimeError, ValueError, AssertionError):
            return False
    return True
