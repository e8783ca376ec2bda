"""MLflow as a mirror of the records: one parent run per study, one nested run per record and arm.

It can be written again from the store at any time, any number of times.
"""

from mgdm_ray.results.mlflow.mirror import Mirror
from mgdm_ray.results.mlflow.tracker import Tracker, ui_address, ui_command

__all__ = ["Mirror", "Tracker", "ui_address", "ui_command"]
