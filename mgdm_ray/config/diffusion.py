"""Denoiser, guide, sampling and measurement guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from mgdm_ray.config.base import Frozen, MeasurementName, Positive


def _ordered(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise ValueError(f"the first timestep is after the last one: {list(value)}")
    return value


Timestep = Annotated[int, Field(ge=0, le=999)]
Interval = Annotated[tuple[Timestep, Timestep], AfterValidator(_ordered)]
IntervalOrAuto = Annotated[
    Annotated[Interval, Tag("levels")] | Annotated[Literal["auto"], Tag("auto")],
    # One message for a wrong value, not one for each form.
    Discriminator(lambda value: "auto" if isinstance(value, str) else "levels"),
]


class UNetConfig(Frozen):
    """Size of a UNet (denoiser) or UNet encoder (guide)."""

    channels: tuple[Positive, ...] = (32, 64, 96)
    """Channels per level; each further level halves the resolution."""
    attention: tuple[bool, ...] = (False, False, True)
    """Self-attention per level."""
    num_res_blocks: Positive = 1
    """Residual blocks per level."""

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if len(self.channels) != len(self.attention):
            raise ValueError(
                f"'channels' has {len(self.channels)} levels and 'attention' {len(self.attention)}"
            )
        bad = [c for c in self.channels if c % 16]
        if bad:
            raise ValueError(f"channels must be multiples of 16 (group norm, heads); got {bad}")
        return self


class TrainConfig(Frozen):
    """Training options of denoiser and guide."""

    unet: UNetConfig = UNetConfig()
    steps: Positive = 600
    """Optimiser steps."""
    batch_size: Positive = 64
    """Global batch size, split over the workers."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak learning rate of AdamW."""
    warmup: int = Field(50, ge=0)
    """Steps of linear warm-up."""
    decay: bool = True
    """Cosine decay of the learning rate to zero at the last step."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm; null: no clipping."""
    class_balanced: bool = True
    """Sample every class equally often."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints, the most that a kill can cost."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: bfloat16 autocast where it is faster: GPUs with bfloat16, CPUs with AMX or
    AVX512_BF16. ``float16`` scales the loss, for GPUs without bfloat16."""


RECIPES: dict[str, dict[str, Any]] = {
    "small": {},  # the defaults of the fields
    "paper": {
        "schedule": "linear",
        "prediction": "epsilon",
        "loss_weight": "mgdm",
        "learning_rate": 1e-4,
        "warmup": 0,
        "decay": False,
        "grad_clip": None,
        "class_balanced": False,
    },
}


class DenoiserConfig(TrainConfig):
    """The class-conditional diffusion model; ``recipe`` sets defaults of several keys."""

    recipe: Literal["small", "paper"] = "small"
    """Named defaults: ``small`` learns in few steps; ``paper`` is as published: linear schedule,
    epsilon-prediction, loss ``mgdm``, learning rate 1e-4 without warm-up or decay."""
    schedule: Literal["linear", "cosine"] = "cosine"
    """Noise schedule over 1000 training timesteps."""
    prediction: Literal["epsilon", "v"] = "v"
    """What the network predicts."""
    loss_weight: Literal["uniform", "mgdm", "min_snr", "min_snr_soft"] = "uniform"
    """``mgdm``: w_t = sqrt(1 - alphas_cumprod); ``min_snr``: min(snr, 5) on the error of x_0 (Hang
    et al. 2023); ``min_snr_soft``: 5 snr / (5 + snr), without the kink (Crowson et al. 2024)."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of samples trained without label, for classifier-free guidance; drawn per sample."""
    ema_decay: float = Field(0.995, ge=0, lt=1)
    """Decay of the exponential moving average of the weights (with warm-up)."""
    ema_width: float | None = Field(None, gt=0, le=0.25)
    """Instead of ``ema_decay``: an average that grows with the training, this share of its length
    wide (power profile, Karras et al. 2024; theirs are 0.05 to 0.15)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the channels that every residual block leaves out in training; drawn per image."""
    augment: float = Field(0.0, ge=0, le=1)
    """Probability of each of mirroring, turning upside down, rotation, scaling and shift of a
    training image. The network is told which, and synthetic images have none (Karras et al. 2022;
    theirs is 0.12)."""
    mirror: bool = False
    """Mirror every second training image left-right, and so every second synthetic one."""

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, data: Any) -> Any:
        recipe = data.get("recipe") if isinstance(data, Mapping) else None
        return {**RECIPES[recipe], **data} if recipe in tuple(RECIPES) else data


class GuideConfig(TrainConfig):
    """The noisy classifier p(y | x_t, t)."""

    steps: Positive = 300
    """Optimiser steps."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing of the cross-entropy."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the head; ``mutual_information`` needs it above 0."""


class SamplingConfig(Frozen):
    """Stage 1 (generate) and the DDIM grids of all stages."""

    num_inference_steps: int = Field(25, ge=2, le=1000)
    """Steps of generate, encode and decode."""
    solver: Literal["ddim", "second_order"] = "ddim"
    """Solver of stage 1; ``second_order`` needs fewer steps for the same error. Encode and decode
    are always DDIM, so that they mirror each other."""
    encode: Literal["invert", "stored"] = "invert"
    """``invert``: stage 2 starts from the DDIM inversion of the stage-1 image. ``stored``: from the
    noise that stage 1 began with, and decodes with stage 1's solver, ``guidance_scale`` and
    ``clip``: without guidance the image is exactly that of stage 1, and encode costs nothing."""
    inversion_iterations: int = Field(0, ge=0, le=20)
    """Additional forwards per step of encode, so that unguided decoding reproduces the image. Needs
    ``denoiser.prediction: v``."""
    strength: float = Field(1.0, gt=0, le=1)
    """How far encode goes, as a share of the timesteps: less preserves more of the image."""
    guidance_scale: float = Field(1.5, ge=0, le=50)
    """Classifier-free guidance of stage 1; 1 is off."""
    guidance_interval: Interval = (0, 999)
    """First and last timestep at which ``guidance_scale`` acts (Kynkaanniemi et al. 2024); others
    cost one forward instead of two."""
    classifier_scale: float = Field(0.0, ge=0, le=1000)
    """Classifier guidance of stage 1; 0 is off."""
    clip: bool = True
    """Clip pred_x0 to [-1, 1] while generating."""
    clip_stage_two: bool = False
    """Clip pred_x0 in encode and decode as well; needs ``clip``. Off, values outside [-1, 1]
    survive the round trip."""
    batch_size: Positive | Literal["auto"] = "auto"
    """Images per forward pass; ``auto``: as many as fit into memory. The result is the same."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where it is faster: GPUs with bfloat16, CPUs with AMX or
    AVX512_BF16."""

    @model_validator(mode="after")
    def _stored_noise(self) -> Self:
        if self.encode == "stored":
            usual = {"inversion_iterations": 0, "strength": 1, "clip_stage_two": False}
            if bad := [
                k for k, v in {**usual, "classifier_scale": 0}.items() if vars(self)[k] != v
            ]:
                raise ValueError(
                    f"'encode: stored' inverts nothing and repeats an unguided stage 1: leave out "
                    f"{', '.join(map(repr, bad))}, or set 'encode: invert'"
                )
        return self

    @model_validator(mode="after")
    def _clipping(self) -> Self:
        if self.clip_stage_two and not self.clip:
            raise ValueError(
                "'clip_stage_two' needs 'clip': encode would amplify values outside [-1, 1] by the "
                "ratio of the noise levels"
            )
        return self


class GuidanceControls(Frozen):
    """How any measurement is ascended, at any strength."""

    gradient: Literal["normalised", "relative", "raw"] = "normalised"
    """``normalised``: gamma bounds how far an image moves, as root mean square over pixels in
    [-1, 1] (times pi / 2), alike for all datasets; ``relative``: the term is gamma times as long
    as eps per image, and near pure noise moves pred_x0 by about gamma / sqrt(alpha_bar), up to
    160 gamma; ``raw``: the published formula."""
    over_t: Literal["constant", "signal", "noise"] = "constant"
    """Factor of gamma over timesteps: 1, sqrt(alpha_bar_t) (less at high noise), or
    sqrt(1 - alpha_bar_t) (less near the clean image)."""
    decode_guidance_scale: float = Field(1.0, ge=0, le=50)
    """Classifier-free guidance of decode; 1 is off. Encode and ``roundtrip`` never use it, so that
    any other value changes images even at gamma 0."""
    label_scale: float = Field(0.0, ge=0, le=1000)
    """Weight of log p(y | x_t) added to the measurement, to preserve labels; 0 is off."""
    interval: IntervalOrAuto = (0, 999)
    """First and last timestep (0 is clean, 999 is noise) at which guidance acts; ``auto``: where
    the guide's accuracy on noisy validation images is above chance, the longest range."""

    @property
    def levels(self) -> tuple[int, int]:
        """``interval``; ValueError for ``auto``, which the jobs of a study replace."""
        if self.interval == "auto":
            raise ValueError("interval 'auto' needs the guide's curve of a study: give two levels")
        return self.interval


class GuidanceSetting(GuidanceControls):
    """Measurement guidance of stage 2."""

    measurement: MeasurementName = "entropy"
    """The measurement that is ascended."""
    uncertainty_scale: float = Field(0.1, ge=0, le=1e6)
    """Strength (gamma); 0 is off."""

    @classmethod
    def of(cls, setting: Mapping[str, Any]) -> Self:
        """From a record's setting, which also has the stage-1 scales."""
        return cls.model_validate({k: v for k, v in setting.items() if k in cls.model_fields})
