"""The result row and its file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdm_ray.storage.records import Record, append_record, read_records, write_records

names = st.one_of(st.none(), st.text(max_size=8))
finite = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Record,
    key=st.text(min_size=1, max_size=6),
    kind=st.sampled_from(["fit_downstream", "trial", "decode"]),
    status=st.sampled_from(["done", "failed", "pruned", "refused"]),
    reason=st.text(min_size=1, max_size=20),
    dataset=names,
    network=names,
    seed=st.one_of(st.none(), st.integers(0, 9)),
    setting=st.dictionaries(
        st.text(max_size=5), st.one_of(finite, st.text(max_size=5)), max_size=3
    ),
    metrics=st.dictionaries(st.text(max_size=5), finite, max_size=3),
    seconds=st.floats(0, 1e6),
)


@given(rows)
def test_json_round_trip(record: Record) -> None:
    """Catches a field that is lost or changed on the way through records.jsonl."""
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_dict(json.loads(line)) == record


@given(st.lists(rows, max_size=8))
def test_file_round_trip_keeps_the_last_of_each_key(records: list[Record]) -> None:
    """Catches duplicates after a re-run, and separators inside texts that split a line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        write_records(path, records)
        last = {record.key: record for record in records}
        assert {r.key: r for r in read_records(path)} == last
        assert len(read_records(path)) == len(last)


def test_writing_is_independent_of_order_and_leaves_no_temporary(tmp_path: Path) -> None:
    """Catches a file whose bytes depend on the order in which jobs happened to end."""
    records = [Record(key=k, kind="trial", status="done") for k in "cab"]
    write_records(tmp_path / "a.jsonl", records)
    write_records(tmp_path / "b.jsonl", reversed(records))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_a_torn_line_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a study that cannot be resumed because its driver was killed while writing, and a
    next record that is glued to the torn one."""
    path = tmp_path / "records.jsonl"
    append_record(path, Record(key="a", kind="trial", status="done"))
    append_record(path, Record(key="b", kind="trial", status="done"))
    text = path.read_text()
    path.write_text(text[:-20])
    assert [record.key for record in read_records(path)] == ["a"]
    append_record(path, Record(key="c", kind="trial", status="done"))
    append_record(path, Record(key="d", kind="trial", status="done"))
    assert [record.key for record in read_records(path)] == ["a", "c", "d"]
    assert "records.jsonl:2:" in caplog.text


def test_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "records.jsonl") == []


def test_a_status_other_than_done_needs_a_reason() -> None:
    """Catches failures that cannot be explained in the report."""
    with pytest.raises(ValueError, match=r"failed.*\breason\b"):
        Record(key="a", kind="trial", status="failed")
    with pytest.raises(ValueError, match=r"'ok'.*\bdone, failed\b"):
        Record(key="a", kind="trial", status="ok")  # type: ignore[arg-type]


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown.*\['colour'\].*missing.*\['kind'\]"):
        Record.from_dict({"key": "a", "status": "done", "colour": 1})


def test_metrics_that_are_not_finite_are_refused() -> None:
    """Catches NaN in records.jsonl, which is no JSON."""
    record = Record(key="a", kind="trial", status="done", metrics={"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        record.to_json()
