"""Real attempts on our own readers: files that would run code, take all memory, or lead out."""

from __future__ import annotations

import json
import random
import re
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mgdm_ray.classifiers.pretrained import read_weights
from mgdm_ray.config import DatasetConfig, InputError, load_study
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import SPLITS
from mgdm_ray.data.sources.prepare import prepare
from mgdm_ray.data.sources.source import own_listing
from mgdm_ray.storage.records import read_records
from mgdm_ray.storage.store import Store
from tests.data.sources import files as own_files
from tests.fuzz import npz_files, own_images
from tests.fuzz.npz_files import MEMBERS, Touch, header, npy


def npz_with(folder: Path, **members: bytes) -> DatasetConfig:
    """A small dataset in MedMNIST's format, with some of its members replaced."""
    path = folder / "mine.npz"
    rng = random.Random(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in MEMBERS:
            archive.writestr(f"{name}.npy", members.get(name) or npz_files._good(rng, name))
    return DatasetConfig(name="mine", path=str(path), size=npz_files.SIZE)


def test_a_pickle_in_an_npz_is_not_run(tmp_path: Path) -> None:
    """Would catch object arrays that are loaded: labels whose loading makes a file."""
    canary = tmp_path / "canary"
    config = npz_with(
        tmp_path, train_labels=npy(np.array([Touch(canary)], object), allow_pickle=True)
    )
    source = data_source(config)
    source.fingerprint()
    with pytest.raises(InputError, match="'train_labels'"):
        source.check()
    assert not canary.exists()


@pytest.mark.parametrize("shape", ["(99999999999, 8, 8)", "(4000000000,)"])
def test_a_header_that_lies_takes_no_memory(tmp_path: Path, shape: str) -> None:
    """Would catch memory taken for what a header says before the bytes are there."""
    config = npz_with(tmp_path, train_labels=header(shape))
    with pytest.raises(InputError):
        data_source(config).check()


def test_a_huge_label_takes_no_memory(tmp_path: Path) -> None:
    """Caught 16 GiB of counts for one label of 2^31 (found by fuzzing)."""
    labels = npy(np.array([0, 1, 2**31, 0, 1, 0], np.int64))
    with pytest.raises(InputError, match=r"'train_labels'.*\b2147483648\b"):
        data_source(npz_with(tmp_path, train_labels=labels)).check()
    with pytest.raises(InputError, match=r"'test_labels'.*\b2147483648\b"):
        data_source(npz_with(tmp_path, test_labels=labels)).load("test")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [{canary}]",
        "!!python/object/apply:os.system ['touch {canary}']",
        "!!python/object/new:os.system ['touch {canary}']",
    ],
)
def test_yaml_tags_build_nothing(tmp_path: Path, tag: str) -> None:
    """Would catch an unsafe loader, in the file or in --set."""
    canary, path = tmp_path / "canary", tmp_path / "study.yaml"
    path.write_text(f"name: {tag.format(canary=canary)}\n")
    with pytest.raises(InputError, match=r"study\.yaml:1:7: .*python/object"):
        load_study(path)
    path.write_text("name: a\n")
    with pytest.raises(InputError, match=r"^--set name=.*python/object"):
        load_study(path, [f"name={tag.format(canary=canary)}"])
    assert not canary.exists()


def test_aliases_of_aliases_are_measured_first(tmp_path: Path) -> None:
    """Caught minutes and gigabytes for 400 bytes that stand for 10^9 values; and cycles."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    path = tmp_path / "study.yaml"
    for text, said in (
        ("\n".join(lines), r"\b100000\b"),
        ("name: &a [*a]", r"\b30\b"),
        ("name: " + "[" * 40 + "]" * 40, r"\b30\b"),
        ("name: " + "x" * 50_000, r"\b\d{4,}\b"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            load_study(path)


@pytest.mark.parametrize("index", ["²", "9" * 5000, "-1"])
def test_strange_digits_are_no_index(tmp_path: Path, index: str) -> None:
    """Caught a traceback: '²'.isdigit() holds, and int('²') raises."""
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nnetworks: [alexnet]\n")
    with pytest.raises(InputError, match=r"^--set networks\..*\b1$"):
        load_study(path, [f"networks.{index}=resnet18"])


@pytest.mark.parametrize("name", ["../x", "/etc", "..", "a/b", "a\n", ""])
def test_names_of_artefacts_do_not_lead_out(tmp_path: Path, name: str) -> None:
    """Would catch MLflow's class of holes in our store: a key that is a path."""
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        Store(tmp_path).folder("encode", name)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "a/b", "a\\nb"])
def test_names_in_a_study_do_not_lead_out(tmp_path: Path, name: str) -> None:
    """Would catch a study, dataset or experiment whose folder is outside of the storage."""
    study = {"name": "a", "datasets": ["phantom-fundus"], "networks": ["alexnet"]}
    path = tmp_path / "study.yaml"
    for key, broken in {
        "name": {"name": name},
        "datasets[0].name": {"datasets": [{"name": name, "path": "x.npz"}]},
        "tracking.experiment": {"tracking": {"experiment": name}},
        "search.warm_start": {"search": {"warm_start": name, "networks": ["alexnet"]}},
    }.items():
        path.write_text(json.dumps(study | broken))
        with pytest.raises(InputError, match=re.escape(f" {key}: ")):
            load_study(path)


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    """Would catch torch.load, with weights_only or without: the file is not even opened."""
    canary, path = tmp_path / "canary", tmp_path / "resnet18.pth"
    torch.save({"x": Touch(canary)}, path)
    with pytest.raises(InputError, match=r"resnet18\.pth.*\.safetensors"):
        read_weights(path)
    renamed = path.rename(tmp_path / "resnet18.safetensors")
    with pytest.raises(InputError, match=re.escape(str(renamed))):
        read_weights(renamed)
    assert not canary.exists()


def test_a_safetensors_header_that_lies(tmp_path: Path) -> None:
    """Would catch memory taken for a length, or reads beyond the file's end."""
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(4)}, path)
    good = path.read_bytes()
    lying = good.replace(b'"data_offsets":[0,16]', b'"data_offsets":[0,99]')
    assert lying != good
    for data in (lying, struct.pack("<Q", 2**60) + good[8:], good[:-3]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_weights(path)


def test_a_record_of_other_types_is_passed_over(tmp_path: Path) -> None:
    """Caught a traceback: a key that is a list cannot name a row."""
    path = tmp_path / "records.jsonl"
    rows = [
        {"key": [], "kind": "encode", "status": "done"},
        {"key": "a", "kind": "encode", "status": "done", "metrics": 3},
        {"key": "b", "kind": "encode", "status": "done"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [record.key for record in read_records(path)] == ["b"]


@pytest.mark.parametrize("name", ["../out.npy", "/tmp/mgdm-out.npy", "a/../../out.npy"])
def test_members_of_an_archive_are_never_unpacked(tmp_path: Path, name: str) -> None:
    """Would catch zip slip: a member whose name leads out is written where it says."""
    path = tmp_path / "mine.npz"
    arrays = {f"{split}_images": np.zeros((8, 8, 8), np.uint8) for split in SPLITS}
    arrays |= {f"{split}_labels": np.arange(8) % 2 for split in SPLITS}
    np.savez(path, allow_pickle=False, **arrays)
    config = DatasetConfig(name="mine", path=str(path), size=8)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"\x93NUMPY")
    data_source(config).fingerprint()
    data_source(config).check()
    data_source(config).load("train")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.npz"]
    assert not Path("/tmp/mgdm-out.npy").exists()


@pytest.mark.parametrize("array", ["classes", "train_labels"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_unfolds_takes_no_memory(tmp_path: Path, array: str) -> None:
    """Caught a zip bomb: some hundred kilobytes that stand for 256 MB of names or labels."""
    config = npz_with(tmp_path)
    with zipfile.ZipFile(str(config.path), "a", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{array}.npy", "w", force_zip64=True) as member:
            member.write(header("(268435456,)"))
            for _ in range(256):
                member.write(b"\0" * 2**20)
        assert archive.getinfo(f"{array}.npy").compress_size < 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError):
        data_source(config).check()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 200, f"{grown:.0f} MB more"


def test_a_picture_that_unfolds_is_refused_by_its_header(tmp_path: Path) -> None:
    """Would catch a decompression bomb: a small PNG of 20,000 x 20,000 pixels."""
    for label in "ab":
        for index in range(4):
            own_files.picture(
                tmp_path / "scans" / label / f"{index}.png", hash((label, index)) % 99
            )
    bomb = own_images.png(20_000, 20_000, b"\0" * 20_001)
    (tmp_path / "scans" / "a" / "bomb.png").write_bytes(bomb)
    config = DatasetConfig(name="scans", path=str(tmp_path / "scans"), size=8)
    with pytest.raises(InputError, match=r"'a/bomb\.png': .*\b80\b"):
        prepare(config, None, tmp_path / "prepared")


@pytest.mark.parametrize(
    ("how", "name"),
    [("link", "x.png"), ("folder link", "c"), ("manifest", "../outside/secret.png")],
)
def test_own_images_are_read_in_their_folder_only(tmp_path: Path, how: str, name: str) -> None:
    """Would catch any file of the machine read, and shown, as an image."""
    secret = own_files.picture(tmp_path / "outside" / "secret.png")
    root = own_files.tree(tmp_path / "scans", {"a": 3, "b": 3})
    path = root
    if how == "link":
        (root / "a" / "x.png").symlink_to(secret)
    elif how == "folder link":
        (root / "c").symlink_to(secret.parent)
    else:
        path = root / "list.csv"
        path.write_text("path,label\na/0.png,a\n../outside/secret.png,b\n")
    with pytest.raises(InputError, match=f"{name}.* {root}"):
        prepare(DatasetConfig(name="s", path=str(path), size=8), None, tmp_path / "prepared")


def test_a_dicomdir_is_passed_over(tmp_path: Path) -> None:
    """Would catch the directory of a DICOM disc, whose records may name any file
    (CVE-2026-32711), being read with the images beside it."""
    root = own_files.tree(tmp_path / "scans", {"a": 5, "b": 5})
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 50)
    (root / "a" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 50)
    listing = own_listing(DatasetConfig(name="s", path=str(root), size=8), None)
    assert listing is not None
    assert len(listing.items) == 10
