"""Measurements of users, imported before a setting that names one is read."""

from __future__ import annotations

import importlib
import os

from mgdm_ray.config import InputError


def import_plugins() -> None:
    """Import the modules named in MGDM_PLUGINS; InputError where one of them fails."""
    if not os.environ.get("MGDM_PLUGINS"):
        return  # guidance imports torch, which planning need not
    try:
        importlib.import_module("mgdm_ray.diffusion.guidance")
    except Exception as error:
        name = os.environ["MGDM_PLUGINS"]
        raise InputError(f"MGDM_PLUGINS={name}: {type(error).__name__}: {error}") from error
