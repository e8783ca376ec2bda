"""The network that a cell or a trial trains."""

from __future__ import annotations

from torch import nn

from mgdm_ray.classifiers.networks import build_network
from mgdm_ray.classifiers.pretrained import Source
from mgdm_ray.classifiers.weights import HUB, weights_file
from mgdm_ray.config import DownstreamConfig
from mgdm_ray.data.info import DatasetInfo
from mgdm_ray.pipeline.tasks.base import Context, JobError


def network_for(
    name: str,
    config: DownstreamConfig,
    info: DatasetInfo,
    size: int,
    context: Context,
    *seed_parts: str | int | float | bool,
) -> nn.Module:
    """``name`` for images of ``size`` pixels, with the weights ``config.pretrained`` asks for."""
    source: Source | None = None
    if config.pretrained == HUB:
        source = "hub"
    elif config.pretrained is not None:
        if context.weights_folder is None:
            raise JobError("the folder of downstream.pretrained is not known here")
        source = weights_file(context.weights_folder, name)
    return build_network(
        name, info.num_classes, info.channels, size, *seed_parts, pretrained=source
    )
