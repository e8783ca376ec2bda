"""Objects in S3, Google Cloud Storage and their like, reached through fsspec."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow.fs

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
"""What fsspec needs for a protocol, where that is a package of its own."""


CONFLICTS = 10


class ObjectsError(OSError):
    """The object store cannot be used, or does not answer; the message says what to do."""


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """Raises ObjectsError for what a protocol's library has of errors of its own.

    They have no common ancestor. OSErrors (not found, exists, no permission) stay as they are.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ObjectsError(f"{url} does not answer ({type(error).__name__}: {error})") from error


def is_url(location: str) -> bool:
    return "://" in location


class Objects:
    """The objects whose names begin with ``url``; all names here are relative to it.

    What is relied on: an object appears whole or not at all, a read after a write sees it, and
    ``create`` lets exactly one of several writers win. S3 has all three since 2024. Credentials
    and endpoint come from where the protocol's library looks for them (``AWS_*``, a role).
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        protocol = self.url.partition("://")[0]
        # Else gcsfs asks by gRPC for the bucket's kind before anything else, again and again where
        # it may not know; objects of every kind that we can use are reached without.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            # What others write must be seen at once: no listing is remembered.
            self._fs, self._root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            package = PACKAGES.get(protocol, f"fsspec's package for {protocol}")
            raise ObjectsError(f"{url}: {package} is not installed: pip install {package}") from (
                error
            )
        except ValueError as error:
            raise ObjectsError(f"{url}: {error}; known: s3://, gs://, or a folder") from error

    def require(self) -> None:
        """Raises ObjectsError unless objects can be written, read, listed and created once.

        The last is the one that some servers with S3's interface do not have.
        """
        name = f"tmp/{uuid.uuid4().hex}"
        try:
            won = [self.create(name, b"first"), self.create(name, b"second")]
            there = self.read(name), list(self.sizes(name))
            self.remove([name])
        except OSError as error:
            raise ObjectsError(
                f"{self.url} cannot be used: {type(error).__name__}: {error}. Does the bucket "
                "exist, and may these credentials read, list, write and delete in it?"
            ) from error
        if won != [True, False] or there != (b"first", [name]):
            raise ObjectsError(
                f"{self.url}: this server lets a second writer replace an object that was to be "
                "created only where there is none (If-None-Match), so that no job could be known "
                "to be done; take a newer server, or a shared folder"
            )

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        with _answering(self.url):
            data: bytes = self._fs.cat_file(self._path(name))
            return data

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Of those that are there, many at a time."""
        with _answering(self.url):
            paths = {self._path(name): name for name in names}
            if not paths:
                return {}
            found = self._fs.cat(list(paths), on_error="omit")
            return {paths[path]: data for path, data in found.items()}

    def write(self, name: str, data: bytes) -> None:
        with _answering(self.url):
            self._fs.pipe_file(self._path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that is not there; False, and nothing written, where it is."""
        with _answering(self.url):
            for _ in range(CONFLICTS):
                try:
                    self._fs.pipe_file(self._path(name), data, mode="create")
                except FileExistsError:
                    return False
                except OSError as error:
                    if "PreconditionFailed" in str(error):
                        return False
                    if "ConditionalRequestConflict" not in str(error):
                        raise
                    continue  # so S3 answers where two create it in the same moment
                return True
            raise ObjectsError(f"{self.url}: others kept writing {name}")

    def exists(self, name: str) -> bool:
        with _answering(self.url):
            return bool(self._fs.exists(self._path(name)))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object whose name is ``prefix`` or begins with ``prefix/``."""
        with _answering(self.url):
            self._fs.invalidate_cache()
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return {}
            start = len(self._root.rstrip("/")) + 1
            # A prefix without objects may be listed as what it then is, a folder.
            files = {path: facts for path, facts in found.items() if facts["type"] == "file"}
            return {path[start:]: int(facts["size"]) for path, facts in files.items()}

    def upload(self, path: Path, name: str) -> None:
        with _answering(self.url):
            self._fs.put_file(str(path), self._path(name))

    def download(self, name: str, path: Path) -> None:
        """Raises FileNotFoundError."""
        with _answering(self.url):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(self._path(name), str(path))

    def remove(self, names: Iterable[str]) -> None:
        """Also of those that another one removes just now."""
        with _answering(self.url):
            paths = [self._path(name) for name in names]
            if not paths:
                return
            try:
                self._fs.rm(paths)
            except FileNotFoundError:  # not all protocols go on after one that is not there
                for path in paths:
                    with contextlib.suppress(FileNotFoundError):
                        self._fs.rm_file(path)

    def remove_all(self, prefix: str) -> None:
        self.remove(self.sizes(prefix))

    def version(self, name: str) -> str:
        """Changes when the object does. Raises FileNotFoundError."""
        with _answering(self.url):
            self._fs.invalidate_cache()
            return str(self._fs.ukey(self._path(name)))

    def arrow(self, name: str) -> tuple[str, pyarrow.fs.FileSystem]:
        """(path, file system) of the objects below ``name``, as Ray wants its storage."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        return self._path(name), PyFileSystem(FSSpecHandler(self._fs))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
