"""What the shipped clusters could become; no Ray is started."""

from __future__ import annotations

import pytest
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config

from mgdm_ray.config import load_study
from mgdm_ray.pipeline.plan import make_plan
from mgdm_ray.pipeline.requests import shortages
from mgdm_ray.runtime.capacity import FIXED, TRAININGS_AHEAD, Growth, from_config
from tests.conftest import ROOT

NOTHING = {"CPU": 0.0}


def grown(name: str) -> Growth:
    documents = list(yaml.safe_load_all((ROOT / "cluster" / name).read_text(encoding="utf-8")))
    if name != "kuberay.yaml":
        return from_config(documents[0])
    resource = next(document for document in documents if document["kind"] == "RayCluster")
    resource["metadata"]["namespace"] = "mgdm"
    return from_config(autoscaling_config._derive_autoscaling_config_from_ray_cr(resource))


@pytest.mark.parametrize("name", ["gpu.yaml", "gcp.yaml", "kuberay.yaml"])
def test_the_shipped_clusters_hold_the_shipped_gpu_study(name: str) -> None:
    """Would catch a study refused by a cluster that starts nodes on demand, and node types too
    small for it."""
    config = load_study(ROOT / "studies" / "grid.yaml")
    plan = make_plan(config, {dataset.origin: "x" for dataset in config.datasets})
    growth = grown(name)
    assert growth.scales
    assert growth.machines
    assert shortages(plan.jobs.values(), config.resources, [NOTHING])
    assert shortages(plan.jobs.values(), config.resources, growth.machines) == []
    train = config.resources.cpus_per_worker, config.resources.gpus_per_worker
    assert growth.could_be(NOTHING, train, TRAININGS_AHEAD) == 4, "one per dataset"


def test_what_is_not_known_is_not_refused() -> None:
    """Would catch a study refused for nodes whose cores nobody wrote down, and one that waits for
    an autoscaler that can start nothing."""
    assert grown("onprem.yaml") == FIXED
    types = {"head": {}, "node": {"max_workers": 3}}
    unknown = from_config({"available_node_types": types, "head_node_type": "head"})
    assert unknown == from_config({}) == Growth(True, None)
    assert unknown.could_be({"CPU": 3.0}, (1.0, 0.0), 2) == 5
    assert FIXED.could_be({"CPU": 3.0}, (1.0, 0.0), 2) == 3
    small = Growth(True, ({"CPU": 4.0},))
    assert small.could_be({"CPU": 3.0}, (1.0, 0.0), 2) == 4, "no more than could ever run"
