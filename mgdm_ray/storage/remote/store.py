"""The store in an object store, with a local cache on every machine.

```
URL/artifacts/KIND/KEY/UPLOAD/...   the files of one writer; UPLOAD is a random name
URL/artifacts/KIND/KEY/done         {"upload": UPLOAD, "manifest": ...}; created, never replaced
```
Objects cannot be renamed, so an artefact is published by its done marker, a create-if-absent that
names the upload. Uploads that no marker names are never read; a later sweep removes them.
"""

from __future__ import annotations

import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdm_ray.storage.files import held, replacing, within
from mgdm_ray.storage.remote.cache import Cache, cache_root
from mgdm_ray.storage.remote.objects import Objects, is_url
from mgdm_ray.storage.store import Store, manifest_of, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from mgdm_ray.storage.store import Contents

CONCURRENT = 8
"""Parallel transfers."""
_PLACE = re.compile(
    r"^artifacts/(?P<kind>[a-z0-9_]{1,64})/(?P<key>[a-z0-9_]{1,64})/(?P<rest>(?P<upload>[^/]+).*)$"
)
"""Object names of artefacts; a bucket may hold other objects."""


def open_store(location: str | Path) -> Store:
    """Open the store in a folder or at a URL (``s3://bucket/folder``)."""
    text = str(location)
    return RemoteStore(text) if is_url(text) else Store(Path(text).expanduser())


def _parsed(marker: bytes) -> dict[str, Any]:
    """Parse a done marker; empty if it is damaged."""
    try:
        found = json.loads(marker)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"upload", "manifest"} <= set(found) else {}


class RemoteStore(Store):
    """A ``Store`` whose truth is the objects at ``url``.

    ``root`` is this machine's cache. Downloads are compared with the manifest's checksums.
    """

    def __init__(self, url: str) -> None:
        super().__init__(cache_root(url))
        self.location = url.rstrip("/")
        self.objects = Objects(url)
        self._cache, self._local = Cache(self.root), Store(self.root)
        self._listed: dict[tuple[str, str], dict[str, Any]] | None = None
        self._sizes: dict[str, int] = {}

    def sweep(self) -> None:
        """Also remove superseded and incomplete uploads of finished jobs.

        Uploads of unfinished jobs stay: their writer may be alive.
        """
        self._local.sweep()
        done = {pair: self._marker(*pair).get("upload") for pair in self.done()}
        left = []
        for name in self._sizes:
            place = _PLACE.match(name)
            counts = place and done.get((place["kind"], place["key"]))
            if place and counts and place["rest"] != "done" and place["upload"] != counts:
                left.append(name)
        for name in self.objects.sizes("work"):
            kind, _, key = name.split("/")[1].rpartition("-")
            if (kind, key) in done:
                left.append(name)
        self.objects.remove(left)

    def is_done(self, kind: str, key: str) -> bool:
        if self._listed and (kind, key) in self._listed:
            return True
        return self.objects.exists(self._name(kind, key, "done"))

    def done(self) -> Iterator[tuple[str, str]]:
        """Yield every finished (kind, key); reads all markers and manifests in parallel."""
        self._sizes = self.objects.sizes("artifacts")
        places = {name: place for name in self._sizes if (place := _PLACE.match(name))}
        markers = self.objects.read_all(n for n, place in places.items() if place["rest"] == "done")
        self._listed = {
            (places[name]["kind"], places[name]["key"]): _parsed(markers[name])
            for name in sorted(markers)
        }
        return iter(list(self._listed))

    def manifest(self, kind: str, key: str) -> dict[str, Any]:
        manifest: dict[str, Any] = self._marker(kind, key)["manifest"]
        return manifest

    def _marker(self, kind: str, key: str) -> dict[str, Any]:
        if self._listed and (kind, key) in self._listed:
            return self._listed[kind, key]
        try:
            marker = _parsed(self.objects.read(self._name(kind, key, "done")))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no finished artefact {kind}/{key} in {self.location}"
            ) from None
        return marker

    def here(self, kind: str, key: str) -> Path:
        """Fetch a finished artefact. Raises OSError if the download does not match its manifest."""
        self._cache.use(kind, key)
        # One process of a machine fetches, the others wait.
        with self._held(f"fetch-{kind}-{key}"):
            with self._held(f"{kind}-{key}"):  # against a concurrent trim
                if self._local.is_done(kind, key):
                    self._cache.touch(kind, key)
                    return self.folder(kind, key)
            folder = self._fetch(kind, key)
        self._cache.added(kind, key)
        return folder

    def _fetch(self, kind: str, key: str) -> Path:
        marker = self._marker(kind, key)
        manifest = marker["manifest"]
        with self._local.writing(kind, key) as temporary:
            self._each(
                self.objects.download,
                [
                    (self._name(kind, key, marker["upload"], name), within(temporary, name))
                    for name in manifest["files"]
                ],
            )
            for name, facts in manifest["files"].items():
                if sha256_of(temporary / name) != facts["sha256"]:
                    raise OSError(f"{self.location}: {kind} {key}: {name} has another checksum")
            # File times are this machine's.
            local = manifest_of(kind, key, temporary, manifest["record"], {})
            facts = {**manifest, "files": local["files"]}
            return self._local.publish(kind, key, temporary, facts)

    def commit(
        self,
        kind: str,
        key: str,
        temporary: Path,
        record: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Path:
        """Upload, then publish by creating the done marker."""
        manifest = manifest_of(kind, key, temporary, record, provenance)
        upload = uuid.uuid4().hex
        names = {name: self._name(kind, key, upload, name) for name in manifest["files"]}
        self._each(self.objects.upload, [(temporary / name, to) for name, to in names.items()])
        marker = json.dumps({"upload": upload, "manifest": manifest}, allow_nan=False)
        first = self.objects.create(self._name(kind, key, "done"), marker.encode())
        # If it exists, the reply to our own first attempt may have been lost.
        if not first and self._marker(kind, key)["upload"] != upload:
            self.objects.remove(names.values())
        self._cache.use(kind, key)
        folder = self._local.publish(kind, key, temporary, manifest)
        self._cache.added(kind, key)
        self.clear(self.work(kind, key))
        return folder

    def release(self) -> None:
        self._cache.release()

    def share(self, path: Path) -> None:
        self.objects.upload(path, path.relative_to(self.root).as_posix())

    def bring(self, folder: Path, *, anew: bool = False, deep: bool = True) -> None:
        sizes = self.objects.sizes(folder.relative_to(self.root).as_posix())
        paths = {name: within(self.root, name) for name in sizes}
        missing = [
            (name, path)
            for name, path in paths.items()
            if (deep or path.parent in (folder, folder.parent))
            and (anew or not path.is_file() or path.stat().st_size != sizes[name])
        ]
        self._each(self._bring_one, missing)

    def _bring_one(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            self.objects.download(name, temporary)

    def ray_storage(self, kind: str, key: str) -> tuple[str, Any]:
        return self.objects.arrow(self.work(kind, key).relative_to(self.root).as_posix())

    def clear(self, folder: Path) -> None:
        super().clear(folder)
        self.objects.remove_all(folder.relative_to(self.root).as_posix())

    def verify(self, kind: str, key: str, contents: Contents = "all") -> str:
        """Verify the local copy if there is one, else the sizes of all objects.

        Checksums are compared at every download.
        """
        if self._local.is_done(kind, key) and self._marker(kind, key):
            return self._local.verify(kind, key, contents)
        return self._difference(kind, key)

    def check(self, kind: str, key: str, contents: Contents = "all") -> str:
        """Move the done marker of a damaged artefact away; drop a damaged local copy too."""
        if self._listed is not None and (kind, key) not in self._listed:
            return ""
        if not self.is_done(kind, key):
            return ""
        self._local.check(kind, key, contents)
        wrong = self._difference(kind, key)
        if not wrong:
            return ""
        number = uuid.uuid4().hex[:8]
        place = f"damaged/{kind}-{key}-{number}/done"
        self.objects.write(place, self.objects.read(self._name(kind, key, "done")))
        self.objects.remove([self._name(kind, key, "done")])
        if self._listed:
            self._listed.pop((kind, key), None)
        return f"{wrong}; its marker was moved to {self.location}/{place}"

    def _difference(self, kind: str, key: str) -> str:
        try:
            marker = self._marker(kind, key)
            files = marker["manifest"]["files"]
            prefix = self._name(kind, key, marker["upload"])
        except FileNotFoundError:
            return "done is missing"
        except LookupError:
            return "its done marker cannot be read"
        listed = self._listed and (kind, key) in self._listed
        sizes = self._sizes if listed else self.objects.sizes(prefix)
        for name, facts in files.items():
            size = sizes.get(f"{prefix}/{name}")
            if size is None:
                return f"{name} is missing"
            if size != facts["bytes"]:
                return f"{name} has {size} bytes instead of {facts['bytes']}"
        return ""

    def _name(self, kind: str, key: str, *rest: str) -> str:
        self.folder(kind, key)  # raises ValueError for an unsafe name
        return "/".join(("artifacts", kind, key, *rest))

    def _held(self, name: str) -> AbstractContextManager[None]:
        self._temporary()
        return held(self._lock(name))

    def _each(self, function: Callable[..., None], arguments: Iterable[tuple[Any, Any]]) -> None:
        """Call ``function`` for each pair in parallel; re-raises the first error."""
        todo = list(arguments)
        with ThreadPoolExecutor(CONCURRENT) as pool:
            for future in [pool.submit(function, *pair) for pair in todo]:
                future.result()
