"""Checks of a study's networks that need more than the file: timm, and files with weights.

No torch, unless a network is timm's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from mgdm_ray.config import TIMM, InputError, StudyConfig
from mgdm_ray.data.npz import resolve_data_dir
from mgdm_ray.storage.remote.cache import at_hand

HUB = "hub"
SUFFIX = ".safetensors"
"""The only format that is read: others hold pickles."""
CONVERT = (
    "import torch; from safetensors.torch import save_file; save_file({{k: v.contiguous() for k, v "
    'in torch.load("{name}.pth", weights_only=True).items()}}, "{name}.safetensors")'
)
"""For the user's own Python."""


def trained_networks(config: StudyConfig) -> tuple[str, ...]:
    """The networks of the cells and of the search, each once."""
    searched = config.search.networks if config.search else ()
    return tuple(dict.fromkeys((*config.networks, *searched)))


def require_timm(config: StudyConfig) -> None:
    """InputError where a network needs timm, and timm is not installed or does not know it."""
    judge = (config.judge.network,) if config.judge else ()
    wanted = [name for name in (*trained_networks(config), *judge) if name.startswith(TIMM)]
    if not wanted:
        return
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"network {wanted[0]!r} needs timm, which is not installed: "
            "pip install 'mgdm-ray[timm]'"
        ) from error
    for name in wanted:
        model = name.removeprefix(TIMM)
        try:
            known = timm.is_model(model) and timm.get_pretrained_cfg(model)
        except RuntimeError:  # no weights of this tag: NETWORK.TAG names a network and its weights
            known = None
        if not known:
            stem = model.partition(".")[0].split("_")[0]
            close = ", ".join(TIMM + found for found in timm.list_models(f"*{stem}*")[:5])
            raise InputError(
                f"unknown network {name!r}: timm {timm.__version__} does not have it"
                + (f"; it has {close}" if close else "")
            )


def weights_folder(config: StudyConfig) -> str | None:
    """The folder ``downstream.pretrained``; None for the hub and for fresh weights."""
    given = config.downstream.pretrained
    if given in (None, HUB):
        return None
    folder, path = resolve_data_dir(config.data_dir), Path(given).expanduser()
    return str(path) if path.is_absolute() else f"{folder}/{path}"


def weights_file(folder: str, network: str) -> Path:
    """NETWORK.safetensors in ``folder``; InputError where it is missing."""
    path = at_hand(folder, f"{network}{SUFFIX}")
    if path.is_file():
        return path
    advice = "Put the file there,"
    if at_hand(folder, f"{network}.pth").is_file():
        advice = (
            f"{network}.pth is a pickle and not read. If you trust it, convert it: "
            f"python -c '{CONVERT.format(name=network)}'; or"
        )
    raise InputError(
        f"downstream.pretrained: {network}{SUFFIX} is not in {folder}. {advice} "
        f"name another folder, or set it to {HUB!r} (downloads) or null (fresh weights)"
    )


def weights_fingerprints(config: StudyConfig) -> dict[str, str]:
    """sha256 of the file of each network as ``weights/NETWORK``; InputError where one is
    missing."""
    folder = weights_folder(config)
    if folder is None:
        return {}
    found = {}
    for network in trained_networks(config):
        with weights_file(folder, network).open("rb") as file:
            found[f"weights/{network}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
