"""Storages that somebody else wrote, or broke: told or passed over, and never a traceback."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdm_ray import study
from mgdm_ray.pipeline.cost_model import manifests_in
from mgdm_ray.storage.store import Store
from tests.conftest import TINY
from tests.fuzz import storages


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Path, Path]:
    """A study file, and a storage in which all of it is done."""
    path, root = tmp_path / "study.yaml", tmp_path / "runs"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    storages._copy_model(path, root)
    return path, root


def plan(finished: tuple[Path, Path]) -> int:
    return study.main([str(finished[0]), "--storage", str(finished[1]), "--plan"])


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": "text"},
        {"inputs": {"dataset": 3}},
        {"needs": ["a"]},
        {"record": {"key": 1}},
        {"inputs": {"dataset": {"size": 10**400}}},
    ],
)
def test_a_manifest_of_another_make_prices_nothing(
    finished: tuple[Path, Path], change: dict[str, Any]
) -> None:
    """Caught tracebacks of --plan for manifests whose checksum is right and whose content is not
    ours."""
    path = sorted(finished[1].glob("artifacts/fit_downstream/*/manifest.json"))[0]
    manifest = json.loads(path.read_text()) | change
    data = json.dumps(manifest).encode()
    path.write_bytes(data)
    (path.parent / "done").write_text(hashlib.sha256(data).hexdigest())
    assert plan(finished) == 0


def test_a_marker_that_is_no_file(finished: tuple[Path, Path]) -> None:
    """Caught a traceback: the artefact was listed as finished, and then was not."""
    marker = sorted(finished[1].glob("artifacts/decode/*/done"))[0]
    marker.unlink()
    marker.symlink_to("/dev/null")
    assert marker.parent.name not in manifests_in(Store(finished[1]))
    assert plan(finished) == 0


def test_a_folder_in_place_of_the_records(
    finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Caught a traceback; now it is named, with what to do."""
    records = finished[1] / "studies" / "tiny" / "records.jsonl"
    records.unlink()
    records.mkdir()
    assert plan(finished) == study.WRONG_INPUT
    told = capsys.readouterr().err
    assert str(records) in told


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5000, "[1]", '[{"kind": 1}]', "\0"])
def test_probes_that_are_none(
    finished: tuple[Path, Path], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Caught a RecursionError for a file of nested brackets."""
    (finished[1] / "probes.json").write_text(text)
    assert plan(finished) == study.WRONG_INPUT
    assert "probes.json" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"[" * 50_000, b"\xff\0", b"null", b'{"key": ' + b"9" * 5000])
def test_lines_that_are_no_records(finished: tuple[Path, Path], line: bytes) -> None:
    """Caught a RecursionError, and a number of more digits than Python reads."""
    records = finished[1] / "studies" / "tiny" / "records.jsonl"
    records.write_bytes(records.read_bytes() + b"\n" + line)
    assert plan(finished) == 0


def test_fuzzing_writes_through_no_link(finished: tuple[Path, Path]) -> None:
    """Caught the fuzzer itself: it made a link to a file of the machine, and might have written
    there at its next change."""
    secret = finished[0].parent / "secret"
    secret.write_bytes(b"mine")
    for path in sorted(finished[1].rglob("*")):
        if path.is_file() and path.name in ("records.jsonl", "manifest.json", "done"):
            path.unlink()
            path.symlink_to(secret)
    for number in range(60):
        storages._break(random.Random(number), finished[1])
    assert secret.read_bytes() == b"mine"
