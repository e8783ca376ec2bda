"""Where people find the runs: what to type, and addresses inside MLflow's pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

UI_DEFAULT = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` listens."""
TRAINING = "workflowType=machine_learning"
"""Else MLflow 3 shows what it has for language models around the page."""


def ui_command(uri: str) -> str:
    """What to type, or the address to open, to see the runs."""
    if _is_server(uri):
        return uri
    return f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1"


def ui_address(uri: str, page: str) -> str:
    """The whole address of a page, given as ``compare_page`` does."""
    return f"{uri.rstrip('/') if _is_server(uri) else UI_DEFAULT}/{page}"


def compare_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that compares runs, in this order; relative, so that it holds on any host."""
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), [experiment_id])
    )
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))
