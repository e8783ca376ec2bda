"""What training holds between two steps, and its checkpoints."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgdm_ray.config import DenoiserConfig, GuideConfig
from mgdm_ray.diffusion import STATE_FILE, TENSORS_FILE
from mgdm_ray.diffusion.inference import in_layout
from mgdm_ray.diffusion.parallel import shard, sharded_like, whole
from mgdm_ray.diffusion.unet import build_denoiser, build_guide
from mgdm_ray.precision import resolved_precision

Kind = Literal["denoiser", "guide"]
History = list[dict[str, float]]
"""Rows {"step": 1-based, "loss": mean over the batch of all workers}."""

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of one parameter."""


def kind_of(config: DenoiserConfig | GuideConfig) -> Kind:
    return "denoiser" if isinstance(config, DenoiserConfig) else "guide"


@dataclass
class TrainState:
    """All that training needs to go on exactly where it stopped; ``step`` steps are done."""

    config: DenoiserConfig | GuideConfig
    model: nn.Module
    ema: nn.Module | None
    """Average of the weights: the denoiser's; the guide has none."""
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    """Scales the loss in float16; does nothing in other precisions."""
    step: int = 0
    history: History = field(default_factory=list)
    precision: str = "float32"
    """Of the arithmetic: what ``precision: auto`` means on this device."""
    micro_batch: int | None = None
    """Most images at a time that the GPU's memory holds, once more did not fit."""

    @property
    def trained(self) -> nn.Module:
        """The network to use after training: the averaged weights where there are any."""
        return self.model if self.ema is None else self.ema

    def tensors(self, *, keep: bool = True) -> dict[str, Tensor]:
        """All of it, on the CPU; names begin with ``model.``, ``ema.`` or ``optimizer.``.

        With sharded weights all workers must call this; those that do not ``keep`` get nothing, and
        hold one whole tensor at a time.
        """
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
        found = {}
        for name, value in tensors.items():
            together = whole(value.detach())
            if keep:
                found[name] = together.cpu().contiguous()
        return found

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> None:
        """Write ``state.safetensors`` (``tensors``, default ``tensors()``), then ``state.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors() if tensors is None else tensors, folder / TENSORS_FILE)
        facts = {
            "step": self.step,
            "history": self.history,
            "precision": self.precision,
            "scaler": self.scaler.state_dict(),
        }
        if self.micro_batch is not None:
            facts["micro_batch"] = self.micro_batch
        (folder / STATE_FILE).write_text(json.dumps(facts), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Restore what ``save`` wrote; ValueError if it is the state of another network."""
        facts = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        try:
            self.take(load_file(folder / TENSORS_FILE))
        except RuntimeError as error:
            raise ValueError(f"{folder} holds the state of another network: {error}") from error
        if self.scaler.is_enabled() and facts.get("scaler"):
            self.scaler.load_state_dict(facts["scaler"])
        self.step, self.history = int(facts["step"]), list(facts["history"])
        self.micro_batch = facts.get("micro_batch")

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors()`` gave; RuntimeError if it is of another network."""
        self.model.load_state_dict(_without_prefix(tensors, "model."))
        if self.ema is not None:
            self.ema.load_state_dict(_without_prefix(tensors, "ema."))
        for name, parameter in self.model.named_parameters():
            # Fused AdamW wants its step counter beside the parameter, and the moments in its
            # layout: it goes through memory and asks for no strides.
            self.optimizer.state[parameter] = {
                key: _beside(parameter, tensors[f"optimizer.{key}.{name}"])
                for key in MOMENTS
                if f"optimizer.{key}.{name}" in tensors
            }

    def shard(self) -> None:
        """Cut weights, average and moments among the workers, in place."""
        moments = {n: self.optimizer.state.get(p, {}) for n, p in self.model.named_parameters()}
        bfloat16 = self.precision == "bfloat16" and next(self.model.parameters()).is_cuda
        shard(self.model, bfloat16=bfloat16)
        if self.ema is not None:
            shard(self.ema)
        self.optimizer = _optimizer(self.model, self.config)
        for name, parameter in self.model.named_parameters():
            if moments[name]:
                self.optimizer.state[parameter] = {
                    key: value if value.ndim == 0 else sharded_like(parameter, value)
                    for key, value in moments[name].items()
                }

    def gather(self, empty: TrainState | None) -> TrainState:
        """``empty`` with all that the workers hold together; without it, this worker's part."""
        tensors = self.tensors(keep=empty is not None)
        if empty is None:
            return self
        empty.take(tensors)
        empty.step, empty.history = self.step, self.history
        empty.micro_batch = self.micro_batch
        return empty


def _beside(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape:  # the step counter
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value)


def _without_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def new_state(
    config: DenoiserConfig | GuideConfig,
    channels: int,
    num_classes: int,
    seed: int,
    device: str | torch.device = "cpu",
) -> TrainState:
    """Untrained, with the weights of ``seed``."""
    kind, device = kind_of(config), torch.device(device)
    model: nn.Module
    if isinstance(config, DenoiserConfig):
        options = {"dropout": config.dropout > 0, "augment": config.augment > 0}
        model = build_denoiser(config.unet, channels, num_classes, kind, seed, **options)
    else:
        dropout = config.dropout
        model = build_guide(config.unet, channels, num_classes, kind, seed, dropout=dropout)
    in_layout(model.to(device), device, backward=True)
    ema = copy.deepcopy(model).eval().requires_grad_(False) if kind == "denoiser" else None
    precision = resolved_precision(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    return TrainState(config, model, ema, _optimizer(model, config), scaler, precision=precision)


def _optimizer(model: nn.Module, config: DenoiserConfig | GuideConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=1e-2, fused=True
    )
