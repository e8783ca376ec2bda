"""The study file: frozen pydantic models, unknown keys refused, one docstring per field."""

from mgdm_ray.config.base import *
from mgdm_ray.config.data import *
from mgdm_ray.config.diffusion import *
from mgdm_ray.config.downstream import *
from mgdm_ray.config.file import *
from mgdm_ray.config.search import *
from mgdm_ray.config.study import *
