"""The two networks, both MONAI's: the class-conditional denoiser and the noisy classifier.

With L levels the image size must be a multiple of 2**(L - 1); the classifier halves once more than
the denoiser and rounds up (28 -> 14 -> 7 -> 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mgdm_ray.config import UNetConfig
from mgdm_ray.diffusion.changes import TOLD
from mgdm_ray.diffusion.monai_networks import (
    DiffusionModelEncoder,
    DiffusionModelUNet,
    DiffusionUNetResnetBlock,
)
from mgdm_ray.seeding import derive_seed, generator

HEAD_CHANNELS = 16
"""Channels per attention head; channels are multiples of it."""
MEMBERS = 16
"""Dropout masks of a guide for measurements that compare its answers."""


def _norm_groups(config: UNetConfig) -> int:
    """Groups of every group norm: 16, or fewer in a network that starts with 16 channels.

    Groups of one channel would be instance norm, which removes the mean brightness.
    """
    return min(16, min(config.channels) // 2)


Conditions = Tensor | tuple[Tensor, Tensor]
"""Labels int64 `[N]`, or with them what was changed in the images, float32 `[N, TOLD]`."""


class Denoiser(DiffusionModelUNet):
    """MONAI's UNet whose residual blocks can leave out channels."""

    def forward(
        self, x: Tensor, timesteps: Tensor, *args: Any, masks: Tensor | None = None, **named: Any
    ) -> Tensor:
        """MONAI's, with ``class_labels`` as Conditions; ``masks`` `[N, dropped_channels]` multiply
        what the second convolutions see."""
        layers = [m.conv2 for m in self.modules() if isinstance(m, DiffusionUNetResnetBlock)]
        parts: Sequence[Tensor | None] = [None] * len(layers)
        if masks is not None:
            widths: list[Any] = [layer.in_channels for layer in layers]
            parts = torch.split(masks[..., None, None], widths, dim=1)
        for layer, part in zip(layers, parts, strict=True):
            if part is not None:
                layer.mask = part  # read by ``_masked``
            elif hasattr(layer, "mask"):
                del layer.mask
        output: Tensor = super().forward(x, timesteps, *args, **named)
        return output


def _masked(layer: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    mask: Tensor | None = getattr(layer, "mask", None)
    return given if mask is None else (given[0] * mask,)


def dropped_channels(config: UNetConfig) -> int:
    """Numbers of a mask: the channels of all residual blocks of a denoiser."""
    blocks = 2 * config.num_res_blocks + 1  # of a level, down and up
    return blocks * sum(config.channels) + 2 * config.channels[-1]


class LabelEmbedding(nn.Embedding):
    """Of the label and, where they are given, of the changes of an image."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__(labels, width)
        self.changes = nn.Linear(TOLD, width, bias=False)

    def forward(self, given: Conditions) -> Tensor:
        if isinstance(given, Tensor):  # nothing was changed
            return super().forward(given)
        labels, changes = given
        embedded: Tensor = super().forward(labels) + self.changes(changes)
        return embedded


def build_denoiser(
    config: UNetConfig,
    channels: int,
    num_classes: int,
    *seed_parts: str | int | float | bool,
    dropout: bool = False,
    augment: bool = False,
) -> nn.Module:
    """``model(x_t [N, C, H, W], t int64 [N], class_labels=y int64 [N]) -> [N, C, H, W]``.

    C is ``channels``; labels are 0 .. num_classes - 1, and num_classes means "no label". An
    untrained model predicts 0. Weights are a function of ``seed_parts``; no global random state is
    touched. With ``dropout`` it takes ``masks`` (see ``Denoiser``), with ``augment`` also changes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*seed_parts, "denoiser weights"))
        model = Denoiser(
            spatial_dims=2,
            in_channels=channels,
            out_channels=channels,
            channels=config.channels,
            attention_levels=config.attention,
            num_res_blocks=config.num_res_blocks,
            num_head_channels=HEAD_CHANNELS,
            norm_num_groups=_norm_groups(config),
            use_flash_attention=True,
            num_class_embeds=num_classes + 1,
        )
        if augment:
            model.class_embedding = LabelEmbedding(num_classes + 1, 4 * config.channels[0])
    if dropout:
        for block in model.modules():
            if isinstance(block, DiffusionUNetResnetBlock):
                block.conv2.register_forward_pre_hook(_masked)
    return model


def null_label(denoiser: nn.Module) -> int:
    """The label that means "no label": the last row of the class embedding."""
    embeds = getattr(denoiser, "num_class_embeds", None)
    if not isinstance(embeds, int):
        raise TypeError(f"{type(denoiser).__name__} is not class-conditional")
    return embeds - 1


def build_guide(
    config: UNetConfig,
    channels: int,
    num_classes: int,
    *seed_parts: str | int | float | bool,
    dropout: float = 0.0,
) -> Guide:
    """``model(x_t [N, C, H, W], t int64 [N]) -> logits [N, num_classes]``.

    ``dropout`` does not change the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*seed_parts, "guide weights"))
        model = Guide(
            spatial_dims=2,
            in_channels=channels,
            out_channels=num_classes,
            input_shape=(1, 1),  # sizes MONAI's own head only, which is replaced
            channels=config.channels,
            attention_levels=config.attention,
            num_res_blocks=[config.num_res_blocks] * len(config.channels),
            num_head_channels=HEAD_CHANNELS,
            norm_num_groups=_norm_groups(config),
            use_flash_attention=True,
        )
        model.out = PooledHead(config.channels[-1], num_classes, dropout)
    return model


class Guide(DiffusionModelEncoder):
    """MONAI's UNet encoder with a head that can drop features."""

    out: PooledHead

    def forward(  # type: ignore[override]  # MONAI's conditioning, which a guide has not
        self, x: Tensor, timesteps: Tensor, masks: Tensor | None = None
    ) -> Tensor:
        """Logits `[N, K]` of x `[N, C, H, W]` at timesteps int64 `[N]`.

        ``masks`` multiply the features: `[N, F]` gives every image its own, logits `[N, K]`;
        `[S, 1, F]` gives every image all S in one pass of the encoder, logits `[S, N, K]`.
        """
        features: Tensor = super().forward(x, timesteps)
        return self.out.logits(features, masks)

    @property
    def member_masks(self) -> Tensor | None:
        """`[1 + MEMBERS, 1, F]`: the whole network, and after it those of Monte Carlo dropout."""
        return self.out.masks


class PooledHead(nn.Module):
    """Group norm, SiLU, mean over all positions, dropout, linear: logits from maps of any size.

    MONAI's encoder hands over flattened maps `[N, channels * H * W]`. Groups have at least four
    channels, so that the norm keeps most of the pooled means. Dropout multiplies by given masks and
    draws nothing: ``masks`` are the same for all images, steps and studies.
    """

    masks: Tensor | None

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.channels = channels
        self.norm = nn.GroupNorm(min(16, channels // 4), channels)
        self.linear = nn.Linear(channels, num_classes)
        masks = None
        if dropout:
            members = dropout_masks((MEMBERS, 1, channels), dropout, "guide members")
            masks = torch.cat([torch.ones(1, 1, channels), members])
        # Moves with the weights, but is not saved.
        self.register_buffer("masks", masks, persistent=False)

    def forward(self, flat: Tensor) -> Tensor:
        """The features `[N, channels]`."""
        maps = flat.reshape(flat.shape[0], self.channels, -1)
        pooled: Tensor = nn.functional.silu(self.norm(maps)).mean(dim=2)
        return pooled

    def logits(self, features: Tensor, masks: Tensor | None = None) -> Tensor:
        """Shapes as in ``Guide.forward``."""
        logits: Tensor = self.linear(features if masks is None else features * masks)
        return logits


def dropout_masks(
    shape: tuple[int, ...], dropout: float, *seed_parts: str | int | float | bool
) -> Tensor:
    """float32 `shape`, a function of ``seed_parts``: 0 with probability ``dropout``, else
    1 / (1 - dropout) (inverted dropout, Srivastava et al. 2014).
    """
    keep = torch.rand(shape, generator=generator(*seed_parts)) >= dropout
    return keep.float() / (1 - dropout)
