"""Objects of real HTTP servers with S3's and Google's interfaces, and of fsspec's memory."""

from __future__ import annotations

import multiprocessing
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mgdm_ray.storage.remote.objects import Objects, ObjectsError, is_url

ROUNDS = 100


@pytest.fixture(params=["bucket", "memory"])
def objects(request: pytest.FixtureRequest, bucket: str) -> Objects:
    url = bucket if request.param == "bucket" else "memory://bucket"
    return Objects(f"{url}/{uuid.uuid4().hex}/")


def test_what_is_written_is_read_listed_and_removed(objects: Objects, tmp_path: Path) -> None:
    """Would catch names that lose their folder, and a prefix that takes its neighbours along."""
    objects.require()
    (tmp_path / "file").write_bytes(b"four")
    objects.write("a/b", b"12")
    objects.write("ab", b"1")
    objects.upload(tmp_path / "file", "a/deep/c")
    assert objects.sizes("a") == {"a/b": 2, "a/deep/c": 4}
    assert objects.sizes("a/b") == {"a/b": 2}
    assert objects.sizes("nothing") == {}
    assert objects.sizes("") == {"a/b": 2, "a/deep/c": 4, "ab": 1}
    assert objects.read("a/b") == b"12"
    assert objects.read_all(["ab", "no", "a/b"]) == {"ab": b"1", "a/b": b"12"}
    assert objects.read_all([]) == {}
    objects.download("a/deep/c", tmp_path / "new" / "c")
    assert (tmp_path / "new" / "c").read_bytes() == b"four"
    assert objects.exists("ab")
    assert not objects.exists("abc")
    objects.remove(["ab", "never there"])
    assert not objects.exists("ab")
    objects.remove_all("a")
    assert objects.sizes("") == {}
    with pytest.raises(FileNotFoundError):
        objects.read("a/b")
    with pytest.raises(FileNotFoundError):
        objects.version("a/b")


def test_only_one_of_many_creates_an_object(objects: Objects) -> None:
    """Would catch two writers who both believe that their result counts."""
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: objects.create("done", b"%d" % i), range(8)))
    assert sum(won) == 1
    assert objects.read("done") == b"%d" % won.index(True)


def test_a_changed_object_has_another_version(objects: Objects) -> None:
    """Would catch a data file that was exchanged and is not fetched again."""
    objects.write("x", b"one")
    first = objects.version("x")
    assert objects.version("x") == first
    objects.write("x", b"two")
    assert objects.version("x") != first


def create_all(url: str, who: bytes, start: Any, won: Any) -> None:
    """In a process of its own: rounds that begin together with the other one's."""
    objects, mine = Objects(url), []
    for i in range(ROUNDS):
        start.wait(60)
        if objects.create(f"{i}", who):
            mine.append(f"{i}")
    won.put((who, mine))


def test_only_one_of_two_processes_creates_an_object(bucket: str) -> None:
    """Would catch a condition that the library keeps within one process only."""
    url, context = f"{bucket}/{uuid.uuid4().hex}", multiprocessing.get_context("spawn")
    start, won = context.Barrier(2), context.Queue()
    both = [context.Process(target=create_all, args=(url, w, start, won)) for w in (b"a", b"b")]
    for process in both:
        process.start()
    names = dict(won.get(timeout=120) for _ in both)
    for process in both:
        process.join()
    assert sorted(names[b"a"] + names[b"b"]) == sorted(str(i) for i in range(ROUNDS))
    found = Objects(url).read_all(str(i) for i in range(ROUNDS))
    assert found == {name: who for who, mine in names.items() for name in mine}


def test_a_large_file_comes_back_whole(bucket: str, tmp_path: Path) -> None:
    """Would catch uploads in pieces, which both libraries make of large files, that lose one."""
    objects, data = Objects(f"{bucket}/{uuid.uuid4().hex}"), os.urandom(6 * 2**20 + 1)
    (tmp_path / "file").write_bytes(data)
    objects.upload(tmp_path / "file", "large")
    assert objects.sizes("") == {"large": len(data)}
    objects.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    path, files = objects.arrow("checkpoint")  # as Ray writes and reads its checkpoints
    files.create_dir(path, recursive=True)
    with files.open_output_stream(f"{path}/large") as stream:
        stream.write(data)
    with files.open_input_file(f"{path}/large") as file:
        assert file.read() == data
    assert objects.read("checkpoint/large") == data


def test_a_missing_bucket_says_so(bucket: str) -> None:
    """Would catch a study that starts and cannot keep anything."""
    with pytest.raises(ObjectsError, match="no-such-bucket/x"):
        Objects(f"{bucket.partition('://')[0]}://no-such-bucket/x").require()


def test_what_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a traceback of botocore's."""
    with pytest.raises(ObjectsError, match=r"\bnope\b.*\bs3://"):
        Objects("nope://x/y")
    with pytest.raises(ObjectsError, match=r"abfs://bucket/x: .*pip install adlfs"):
        Objects("abfs://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    silent = Objects("s3://bucket/x")
    silent._fs.__class__.clear_instance_cache()
    with pytest.raises(ObjectsError):
        Objects("s3://bucket/x").read("y")
    silent._fs.__class__.clear_instance_cache()


def test_a_server_without_create_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch servers that take If-None-Match for nothing: done markers would mean nothing."""
    objects = Objects(f"memory://bucket/{uuid.uuid4().hex}")
    pipe = type(objects._fs).pipe_file

    def careless(self: object, path: str, value: bytes, mode: str = "") -> None:  # noqa: ARG001
        pipe(self, path, value)

    monkeypatch.setattr(type(objects._fs), "pipe_file", careless)
    with pytest.raises(ObjectsError, match="If-None-Match"):
        objects.require()


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket")
    assert not is_url("/a/folder")
    assert not is_url("runs")
