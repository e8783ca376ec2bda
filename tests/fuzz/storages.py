"""Storages whose records, manifests and notes were cut, changed or written by someone else."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import io
import json
import random
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from mgdm_ray import study
from mgdm_ray.cli import run
from mgdm_ray.cli.opened_study import OpenedStudy
from mgdm_ray.config import InputError
from mgdm_ray.pipeline.plan import Plan
from mgdm_ray.pipeline.tasks.base import base_record
from mgdm_ray.storage.records import Record, append_record, read_records
from mgdm_ray.storage.store import Store
from tests.conftest import TINY
from tests.fuzz.study_files import STRANGE

VALUES = [v for v in STRANGE if not isinstance(v, bytes)]
_models: dict[str, Path] = {}


def case(rng: random.Random, folder: Path, _canary: Path) -> bool:
    """The storage of a finished study, one to three files of it broken, read as a study does."""
    path, root = folder / "study.yaml", folder / "runs"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False), encoding="utf-8")
    _copy_model(path, root)
    for _ in range(rng.randint(1, 3)):
        _break(rng, root)
    arguments = [str(path), "--storage", str(root)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        if study.main([*arguments, "--plan"]) == study.WRONG_INPUT:
            raise InputError(said.getvalue())
        opened = OpenedStudy(path, storage=str(root))
        stop = patch.object(run, "_finish", side_effect=_ReportIsNext)
        with stop, contextlib.suppress(_ReportIsNext), opened.in_use():
            run.report_only(opened, run.Invocation("fuzz"))
    return True


class _ReportIsNext(Exception):
    """All has been read; what follows is the report of what was found, in seconds."""


def _copy_model(path: Path, root: Path) -> None:
    if "storage" not in _models:
        _models["storage"] = Path(tempfile.mkdtemp(prefix="mgdm-fuzz-"))
        atexit.register(shutil.rmtree, _models["storage"])
        _finish(OpenedStudy(path, storage=str(_models["storage"])).plan, Store(_models["storage"]))
    shutil.copytree(_models["storage"], root)


def _finish(plan: Plan, store: Store) -> None:
    """Every job done, with small files in place of its work."""
    notes = store.root / "studies" / "tiny"
    notes.mkdir(parents=True, exist_ok=True)
    for job in plan.jobs.values():
        record = base_record(job)
        with store.writing(job.kind, job.key) as folder:
            (folder / "history.json").write_text("[]")
            (folder / "trials.json").write_text('[{"number": 0, "setting": {}, "status": "done"}]')
            (folder / "speed.json").write_text('{"seconds": 1.0, "steps": 4, "workers": 1}')
            provenance = {"inputs": job.inputs, "needs": job.needs}
            store.commit(job.kind, job.key, folder, asdict(record), provenance)
        append_record(notes / "records.jsonl", record)
    read_records(notes / "records.jsonl")
    probe = {"kind": "encode", "family": "", "seconds_per_work": 1.0, "bytes_per_item": 1.0}
    (store.root / "probes.json").write_text(json.dumps([probe]))


def _break(rng: random.Random, root: Path) -> None:
    # Never a link, which an earlier change may have made: it would be written through.
    files = sorted(p for p in root.rglob("*") if _is_plain(p) and p.suffix != ".lock")
    path = rng.choice(files)
    kind = rng.random()
    if kind < 0.3:
        path = root / "studies" / "tiny" / "records.jsonl"
        if not _is_plain(path):
            return
        lines = path.read_bytes().splitlines()
        at = rng.randrange(len(lines)) if lines else 0
        path.write_bytes(b"\n".join([*lines[:at], _record_line(rng), *lines[at + 1 :]]))
    elif kind < 0.6:
        manifests = [p for p in files if p.name == "manifest.json"]
        if manifests:
            _rewrite_manifest(rng, rng.choice(manifests))
    elif kind < 0.65:
        path.unlink()
        path.symlink_to(rng.choice((path, "../../../../outside/secret", "/dev/null")))
    elif kind < 0.7:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(_content(rng, path.read_bytes()))


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _content(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return rng.choice(
        (
            data[:at],
            data[:at] + rng.randbytes(5) + data[at:],
            b"",
            b"\0" * len(data),
            b"[" * 100_000,
            b'{"a":' * 5000,
            b"NaN",
            b"[[1]]",
            b'{"x": 1e999}',
            b"9" * 5000,
        )
    )


def _record_line(rng: random.Random) -> bytes:
    row: dict[str, Any] = asdict(Record("k", "encode", "failed", "a reason"))
    for _ in range(rng.randint(0, 3)):
        row[rng.choice((*row, "more"))] = rng.choice(VALUES)
    line = _json(row)
    return rng.choice((line, line, line[:20], b"[" * 50_000, b"null", b"{}", b'"x"', b"\xff\0"))


def _rewrite_manifest(rng: random.Random, path: Path) -> None:
    """With a right checksum: the content is a stranger's, and no accident."""
    try:
        manifest = json.loads(path.read_bytes())
        parts = manifest, manifest["record"], manifest["files"], manifest["inputs"]
        target = rng.choice([part for part in parts if isinstance(part, dict)])
    except (ValueError, LookupError, TypeError, RecursionError):
        return  # an earlier change broke it
    key = rng.choice((*target, "../../../../outside/secret", "/etc/passwd", "more"))
    target[key] = rng.choice(VALUES)
    if target is parts[2] and rng.random() < 0.5:
        target[key] = {"bytes": 9, "sha256": "0" * 64, "mtime_ns": 1}
    data = _json(manifest)
    path.write_bytes(data)
    if _is_plain(path.parent / "done"):
        (path.parent / "done").write_text(hashlib.sha256(data).hexdigest())


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except ValueError:  # a number of more digits than Python prints
        return b'{"key": ' + b"9" * 5000 + b"}"
