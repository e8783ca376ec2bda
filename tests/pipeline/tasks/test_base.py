"""How a job looks up what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgdm_ray.pipeline.tasks.base import Context, JobError, artefact

KEY = "0" * 32


def test_a_need_that_was_cut_short_since_the_start_is_refused(tmp_path: Path) -> None:
    """Would catch a job that computes from the rest of a file, hours after the check at the
    start: the sizes are compared whenever an artefact is used."""
    context = Context(str(tmp_path), str(tmp_path), {})
    store = context.store
    with pytest.raises(JobError, match="encode"):
        artefact(context, "encode", KEY)
    with store.writing("encode", KEY) as folder:
        (folder / "payload").write_bytes(b"x" * 10)
        made = store.commit("encode", KEY, folder, {}, {})
    assert artefact(context, "encode", KEY) == made
    (made / "payload").write_bytes(b"x" * 9)
    with pytest.raises(JobError, match=r"payload .*\b9\b.*\b10\b.*--retry-failed"):
        artefact(context, "encode", KEY)
