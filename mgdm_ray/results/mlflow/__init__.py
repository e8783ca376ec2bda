"""MLflow as a mirror of the records: one parent run per study, one nested run per record and arm.

The store is the truth; whatever is written here can be written again from it, at any time and
any number of times.
"""

from mgdm_ray.results.mlflow.links import ui_address, ui_command
from mgdm_ray.results.mlflow.mirror import Mirror
from mgdm_ray.results.mlflow.rows import run_name
from mgdm_ray.results.mlflow.tracker import Tracker

__all__ = ["Mirror", "Tracker", "run_name", "ui_address", "ui_command"]
