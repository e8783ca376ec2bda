"""The store as objects of an object store, with a cache on every machine.

```
URL/artifacts/KIND/KEY/UPLOAD/...   the files of one writer; UPLOAD is a random name
URL/artifacts/KIND/KEY/done         {"upload": UPLOAD, "manifest": ...}; created, never replaced
```
Nothing can be renamed there, so an artefact appears with its done marker: one object that is
created only where there is none, and that says whose files count. A writer that dies, or comes
second, leaves files that no marker names; nobody reads them, and a later sweep removes them.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdm_ray.storage.files import held, replacing, within
from mgdm_ray.storage.remote.cache import Cache, cache_root
from mgdm_ray.storage.remote.objects import Objects, is_url
from mgdm_ray.storage.store import Store, manifest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from mgdm_ray.storage.store import Contents

CONCURRENT = 8
"""Files on their way at once."""
_PLACE = re.compile(
    r"^artifacts/(?P<kind>[a-z0-9_]{1,64})/(?P<key>[a-z0-9_]{1,64})/(?P<rest>(?P<upload>[^/]+).*)$"
)
"""Of an object of an artefact; a bucket may hold others."""


def open_store(location: str | Path) -> Store:
    """The store in a folder, or at a URL (``s3://bucket/folder``)."""
    text = str(location)
    return RemoteStore(text) if is_url(text) else Store(Path(text).expanduser())


def _parsed(marker: bytes) -> dict[str, Any]:
    """What a done marker says; nothing where it says nothing that can be read."""
    try:
        found = json.loads(marker)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"upload", "manifest"} <= set(found) else {}


class RemoteStore(Store):
    """As ``Store``, with the objects at ``url`` as the truth.

    ``root`` is this machine's cache: what is read comes there first, compared with the checksums
    of its manifest, and what is written is there already.
    """

    def __init__(self, url: str) -> None:
        super().__init__(cache_root(url))
        self.location = url.rstrip("/")
        self.objects = Objects(url)
        self._cache, self._local = Cache(self.root), Store(self.root)
        self._listed: dict[tuple[str, str], dict[str, Any]] | None = None
        self._sizes: dict[str, int] = {}

    def sweep(self) -> None:
        """As that of a folder; also removes uploads that came second or were broken off.

        Of a job that is not done they stay: their writer may live.
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

    # --- what is done -------------------------------------------------------------------

    def is_done(self, kind: str, key: str) -> bool:
        if self._listed and (kind, key) in self._listed:
            return True
        return self.objects.exists(self._name(kind, key, "done"))

    def done(self) -> Iterator[tuple[str, str]]:
        """Every finished (kind, key), and their manifests: one listing, and many reads at once."""
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

    # --- reading and writing ------------------------------------------------------------

    def here(self, kind: str, key: str) -> Path:
        """Raises OSError where what came is not what was written."""
        self._cache.use(kind, key)
        # One process of a machine brings it, the others wait for that.
        with self._held(f"fetch-{kind}-{key}"):
            with self._held(f"{kind}-{key}"):  # against one that makes room
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
                with (temporary / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != facts["sha256"]:
                    raise OSError(f"{self.location}: {kind} {key}: {name} has another checksum")
            # Times of files are this machine's own.
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
        """As that of a folder; on return it is in the object store."""
        manifest = manifest_of(kind, key, temporary, record, provenance)
        upload = uuid.uuid4().hex
        names = {name: self._name(kind, key, upload, name) for name in manifest["files"]}
        self._each(self.objects.upload, [(temporary / name, to) for name, to in names.items()])
        marker = json.dumps({"upload": upload, "manifest": manifest}, allow_nan=False)
        first = self.objects.create(self._name(kind, key, "done"), marker.encode())
        # Where it was not, the answer to our own first try may only have been lost on the way.
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

    # --- damage -------------------------------------------------------------------------

    def verify(self, kind: str, key: str, contents: Contents = "all") -> str:
        """Of the copy here, if there is one; else whether all objects have their sizes.

        Checksums are compared whenever an artefact is brought here.
        """
        if self._local.is_done(kind, key) and self._marker(kind, key):
            return self._local.verify(kind, key, contents)
        return self._difference(kind, key)

    def check(self, kind: str, key: str, contents: Contents = "all") -> str:
        """As that of a folder, for the objects; a damaged copy here is dropped as well."""
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
            return "its marker cannot be read"
        listed = self._listed and (kind, key) in self._listed
        sizes = self._sizes if listed else self.objects.sizes(prefix)
        for name, facts in files.items():
            size = sizes.get(f"{prefix}/{name}")
            if size is None:
                return f"{name} is missing"
            if size != facts["bytes"]:
                return f"{name} has {size} bytes instead of {facts['bytes']}"
        return ""

    # --- names --------------------------------------------------------------------------

    def _name(self, kind: str, key: str, *rest: str) -> str:
        self.folder(kind, key)  # refuses what is no plain name
        return "/".join(("artifacts", kind, key, *rest))

    def _held(self, name: str) -> AbstractContextManager[None]:
        self._temporary()
        return held(self._lock(name))

    def _each(self, function: Callable[..., None], arguments: Iterable[tuple[Any, Any]]) -> None:
        """``function`` of each pair, some at once; raises what the first failed one raised."""
        todo = list(arguments)
        with ThreadPoolExecutor(CONCURRENT) as pool:
            for future in [pool.submit(function, *pair) for pair in todo]:
                future.result()
