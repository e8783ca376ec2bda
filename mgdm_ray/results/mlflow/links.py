"""Commands and addresses of MLflow's pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

UI_DEFAULT = "http://127.0.0.1:5000"
"""Default address of ``mlflow ui``."""
TRAINING = "workflowType=machine_learning"
"""Without it MLflow 3 shows its pages for language models."""


def ui_command(uri: str) -> str:
    """The command, or the address of a server, that shows the runs."""
    if _is_server(uri):
        return uri
    return f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1"


def ui_address(uri: str, page: str) -> str:
    """The full address of a page from ``compare_page``."""
    return f"{uri.rstrip('/') if _is_server(uri) else UI_DEFAULT}/{page}"


def compare_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that compares runs in this order, relative to the address of any server."""
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), [experiment_id])
    )
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))
