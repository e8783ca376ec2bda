"""Open the storage, and stage a study's files for other machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mgdm_ray.classifiers import weights
from mgdm_ray.config import DatasetConfig, InputError, StudyConfig
from mgdm_ray.data.npz import npz_path, resolve_data_dir
from mgdm_ray.pipeline.cost_model import PROBES_FILE
from mgdm_ray.seeding import content_key
from mgdm_ray.storage.remote.cache import limit_bytes
from mgdm_ray.storage.remote.objects import Objects, ObjectsError, is_url
from mgdm_ray.storage.remote.store import RemoteStore, open_store
from mgdm_ray.storage.store import Store


def open_storage(location: str, *, write: bool) -> Store:
    """The store at ``location``; InputError if it cannot be used."""
    if "@" in location.partition("://")[2].partition("/")[0]:
        raise InputError(
            "--storage: the address holds credentials, which would be printed; set them in the "
            "environment instead (AWS_ACCESS_KEY_ID, a profile, a role)"
        )
    try:
        store = open_store(location)
        if isinstance(store, RemoteStore) and write:
            limit_bytes()
            store.objects.require()
    except (ObjectsError, ValueError) as error:
        raise InputError(f"--storage: {error}") from error
    return store


def bring_notes(store: Store, config: StudyConfig) -> None:
    """Fetch the records and probes of this study and its warm start from other machines."""
    names = {config.name}
    if config.search and config.search.warm_start:
        names.add(config.search.warm_start)
    for place in (PROBES_FILE, *(f"studies/{name}" for name in sorted(names))):
        store.bring(store.root / place, anew=True, deep=False)  # figures can be drawn again


def share_notes(store: Store, folder: Path) -> None:
    """Copy the records and the report of a study to where the store is."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.share(path)


@dataclass(frozen=True)
class Inputs:
    """Where jobs read the study's images and pretrained weights."""

    datasets: dict[str, DatasetConfig]
    data_dir: str
    weights_folder: str | None


def inputs_for_all(config: StudyConfig, location: str, contents: Mapping[str, str]) -> Inputs:
    """Where all machines read the study's inputs.

    With the storage in a folder, machines share folders and nothing is copied. With a URL, missing
    files are uploaded to ``URL/data/HASH/``, where HASH is that of all fingerprints (``contents``).
    """
    data_dir, folder = resolve_data_dir(config.data_dir), weights.weights_folder(config)
    datasets = {d.name: d for d in config.datasets}
    if not is_url(location):
        return Inputs(datasets, data_dir, folder)
    objects = Objects(f"{location}/data/{content_key(sorted(contents.items()))}")
    there = objects.sizes("")
    for name, dataset in datasets.items():
        if dataset.phantom is None:
            path = npz_path(dataset, data_dir)
            # Own datasets may have files of the same name.
            place = path.name if dataset.path is None else f"{name}/{path.name}"
            _upload(objects, path, place, there)
            if dataset.path is not None:
                datasets[name] = dataset.model_copy(update={"path": place})
    if folder is not None:
        for network in weights.trained_networks(config):
            path = weights.weights_file(folder, network)
            _upload(objects, path, f"weights/{path.name}", there)
        folder = f"{objects.url}/weights"
    return Inputs(datasets, objects.url, folder)


def _upload(objects: Objects, path: Path, name: str, there: Mapping[str, int]) -> None:
    size = path.stat().st_size
    if there.get(name) != size:
        print(f"uploading {path.name} ({size / 1e6:.1f} MB) to {objects.url}", flush=True)
        objects.upload(path, name)
