"""mgdm-ray: do synthetic images from a guided diffusion model make a classifier better?

``__all__`` is the Python interface (docs/take-away.md), imported lazily: planning needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgdm_ray.results.export.api import (
        Denoiser,
        Guide,
        load_denoiser,
        load_guide,
        register_measurement,
        save_images,
        two_stage,
    )

__version__ = "0.1.0"

__all__ = [
    "Denoiser",
    "Guide",
    "load_denoiser",
    "load_guide",
    "register_measurement",
    "save_images",
    "two_stage",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mgdm_ray.results.export import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
