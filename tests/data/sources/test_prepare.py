"""Own images as the .npz that jobs read: pixels, labels, names, identity, and a whole study."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mgdm_ray.config import DatasetConfig, InputError, load_study
from mgdm_ray.data.checks import check_splits, leaked
from mgdm_ray.data.info import dataset_info
from mgdm_ray.data.load import data_source
from mgdm_ray.data.npz import SPLITS
from mgdm_ray.data.sources.prepare import patients_tested, prepare, tiny_classes
from mgdm_ray.data.sources.source import own_listing
from mgdm_ray.data.sources.splits import splits_csv
from tests.data.sources.files import picture, ramp, tree


def config(path: str = "tree", **options: Any) -> DatasetConfig:
    return DatasetConfig.model_validate({"name": "mine", "path": path, "size": 12, **options})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tree(tmp_path / "tree", {"benign": 30, "malignant": 20})
    return tmp_path


def test_what_jobs_read_is_what_the_files_hold(folder: Path) -> None:
    """Catches images under another label, in another split, or changed on the way (12 px stay)."""
    ready = prepare(config(), folder, folder / "data")
    listing = own_listing(config(), folder)
    assert listing is not None
    assert dataset_info(ready, folder).classes == ("benign", "malignant")
    assert data_source(ready, folder).check() == []
    for split in SPLITS:
        loaded = data_source(ready, folder).load(split)
        items = listing.of(split)
        assert loaded.labels.tolist() == [item.label for item in items]
        for image, item in zip(loaded.images, items, strict=True):
            file = np.asarray(Image.open(folder / "tree" / item.path))
            np.testing.assert_array_equal(image[..., 0], file)


def test_plan_and_run_see_the_same_numbers(folder: Path) -> None:
    """Catches a plan that counts other images than the jobs will read."""
    ready = prepare(config(), folder, folder / "data")
    planned = data_source(config(), folder)
    assert planned.train_images() == len(data_source(ready, folder).load("train"))
    counts = np.bincount(data_source(ready, folder).load("test").labels).tolist()
    assert planned.counts("test") == counts


def test_the_fingerprint_is_of_what_counts(folder: Path) -> None:
    """Catches results that are kept for other images, or lost because a folder was moved."""
    first = data_source(config(), folder).fingerprint()
    shutil.copytree(folder, folder.parent / "moved")
    assert data_source(config(), folder.parent / "moved").fingerprint() == first
    assert (
        data_source(
            config(licence="CC BY 4.0", reading={"damaged": "leave_out"}), folder
        ).fingerprint()
        == first
    )
    others = [
        config(size=16),
        config(reading={"fit": "crop"}),
        config(split={"seed": 1}),
        config(classes=["malignant", "benign"]),
    ]
    assert len({first, *(data_source(other, folder).fingerprint() for other in others)}) == 5
    shutil.copytree(folder, folder.parent / "changed")
    picture(folder.parent / "changed" / "tree" / "benign" / "0.png", 12345)
    assert data_source(config(), folder.parent / "changed").fingerprint() != first


def test_prepared_once(folder: Path) -> None:
    """Catches images decoded at every start, and leftovers beside the file."""
    said: list[str] = []
    ready = prepare(config(), folder, folder / "data", said.append)
    [line] = said
    assert re.search(r"\bmine\b.*\b50\b.*\b12 px\b", line)
    again = prepare(config(), folder, folder / "data", said.append)
    assert again == ready
    assert len(said) == 1
    assert [p.name for p in (folder / "data").iterdir()] == [Path(str(ready.path)).name]


def test_colour_or_grey(folder: Path) -> None:
    """Catches grey datasets of three channels, and one colour image that makes no difference."""
    assert (
        data_source(prepare(config(), folder, folder / "data"), folder)
        .load("train")
        .images.shape[3]
        == 1
    )
    Image.new("RGB", (12, 12), (250, 10, 10)).save(folder / "tree" / "benign" / "red.png")
    moved = folder.rename(folder.parent / "colour")
    for channels, wanted in ((None, 3), (1, 1)):
        ready = prepare(config(reading={"channels": channels}), moved, moved / "data")
        assert data_source(ready, moved).load("train").images.shape[3] == wanted


def test_grey_is_pillows(folder: Path) -> None:
    """Catches another luma than the one Pillow and MedMNIST use."""
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for k in range(50):
        Image.fromarray(np.roll(image, k, axis=0)).save(folder / "tree" / "benign" / f"c{k}.png")
    ready = prepare(config(reading={"channels": 1}), folder, folder / "data")
    wanted = np.asarray(Image.fromarray(image).convert("L"))
    rows = np.concatenate([data_source(ready, folder).load(s).images[..., 0] for s in SPLITS])
    assert any(np.array_equal(row, wanted) for row in rows)


def test_damaged_files(folder: Path) -> None:
    """Catches a study that starts with half its data, and one that one bad file keeps from it."""
    for k in (1, 2):
        (folder / "tree" / "benign" / f"bad{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(k))
    with pytest.raises(InputError, match=r"2 image.*'benign/bad1\.png': "):
        prepare(config(), folder, folder / "data")
    assert not any((folder / "data").iterdir()), "nothing half is left"
    said: list[str] = []
    ready = prepare(config(reading={"damaged": "leave_out"}), folder, folder / "data", said.append)
    assert sum(len(data_source(ready, folder).load(s)) for s in SPLITS) == 50
    assert [line for line in said if "'benign/bad1.png'" in line]


def test_sixteen_bits_share_a_scale(tmp_path: Path) -> None:
    """Catches each deep image stretched on its own; the largest value of all is 4095 here."""
    for k in range(20):
        top = 4095 if k == 0 else 1000 + k
        path = tmp_path / "tree" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp(12, 12, top).astype(np.uint16)).save(path)
    ready = prepare(config(), tmp_path, tmp_path / "data")
    images = np.concatenate([data_source(ready, tmp_path).load(s).images for s in SPLITS])
    tops = sorted(int(image.max()) for image in images)
    assert tops == sorted([255, *(round((1000 + k) / 4095 * 255) for k in range(1, 20))])


def test_tiny_classes_are_told(tmp_path: Path) -> None:
    """Catches a recall over one test image that nobody is warned of."""
    tree(tmp_path / "tree", {"many": 30, "few": 4})
    listing = own_listing(config(), tmp_path)
    assert listing is not None
    (told,) = tiny_classes(listing)
    assert "'few'" in told
    assert "(2 train, 1 val, 1 test)" in told
    tree(tmp_path / "tree", {f"P{k}": 1 for k in range(30)}, start=500)
    (told,) = tiny_classes(own_listing(config(split={"seed": 1}), tmp_path))
    assert told.startswith("31 of 32 classes")


def test_patients_with_several_test_images_are_told(tmp_path: Path) -> None:
    """Catches intervals that are believed although the test images are of few patients."""
    for patient in range(20):
        for visit in range(3):
            name = f"P{patient}_{visit}.png"
            picture(tmp_path / "tree" / "ab"[patient % 2] / name, 10 * patient + visit)
    strangers = own_listing(config(), tmp_path)
    known = own_listing(config(split={"group": r"(P\d+)_"}), tmp_path)
    assert strangers is not None
    assert known is not None
    assert patients_tested(strangers) == []
    assert re.findall(r"\d+", patients_tested(known)[0]) == ["12", "4"]


def test_patients_are_stored_as_numbers(tmp_path: Path) -> None:
    """Catches names of patients in the prepared file, groups that are not the listing's, and a
    file that stays when another division into patients is given; keys and pixels stay."""
    tree(tmp_path / "tree", {"a": 30, "b": 30})
    by = {"group": r"/[0-9]*([0-9])\."}
    known, strangers = config(split=by), config()
    ready = prepare(known, tmp_path, tmp_path / "data")
    listing = own_listing(known, tmp_path)
    assert listing is not None
    groups = [item.group for item in listing.of("test")]
    assert len(set(groups)) < len(groups)
    found = data_source(ready, tmp_path).patients("test")
    assert found is not None
    assert {(a, int(b)) for a, b in zip(groups, found, strict=True)} == set(
        zip(dict.fromkeys(groups), range(len(set(groups))), strict=True)
    )
    assert data_source(known, tmp_path).units("test") == data_source(ready, tmp_path).units("test")
    with np.load(str(ready.path)) as arrays:
        assert arrays["test_groups"].dtype == np.int64
        assert "train_groups" not in arrays
    # The same split, of other patients: the same key, another file.
    splits = tmp_path / "splits.csv"
    splits.write_text(splits_csv(listing))
    fixed = {"file": str(splits)}
    files = {
        str(prepare(one, tmp_path, tmp_path / "data").path)
        for one in (config(split=fixed), config(split={**fixed, **by}))
    }
    prints = {data_source(config(split=s), tmp_path).fingerprint() for s in (fixed, fixed | by)}
    assert (len(files), len(prints)) == (2, 1)
    bare = data_source(prepare(strangers, tmp_path, tmp_path / "data"), tmp_path)
    assert bare.patients("test") is None


def test_names_of_a_medmnist_file(tmp_path: Path) -> None:
    """Catches classes of an .npz of one's own that can only be numbers."""
    arrays: dict[str, Any] = {}
    for split in SPLITS:
        arrays[f"{split}_images"] = np.zeros((12, 12, 12), np.uint8)
        arrays[f"{split}_labels"] = np.arange(12) % 2
    np.savez(tmp_path / "x.npz", **arrays)
    own = config("x.npz", classes=["low", "high"], licence="CC0", citation="me")
    info = dataset_info(own, tmp_path)
    assert (info.classes, info.licence, info.citation) == (("low", "high"), "CC0", "me")
    np.savez(tmp_path / "x.npz", **arrays, classes=np.array(["no", "yes"]))
    assert dataset_info(config("x.npz"), tmp_path).classes == ("no", "yes")
    np.savez(tmp_path / "x.npz", **{**arrays, "train_labels": np.arange(12) % 3})
    with pytest.raises(InputError, match=r"mine.*x\.npz.*up to 2.*classes"):
        dataset_info(own, tmp_path)


@pytest.mark.long
def test_a_whole_study_on_own_images(
    folder: Path, tiny: dict[str, Any], write_study: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches jobs, report or a second start that do not find the prepared images; a report that
    does not tell what every command has told; and splits that are not on paper, or not the same
    when given back."""
    from mgdm_ray.study import main

    split = {"group": r"/(\d)"}  # the first digit of the name: five to twelve images of each
    tiny["datasets"] = [{"name": "mine", "path": "tree", "split": split}]
    tiny |= {"arms": ["real", "generate"], "search": None, "data_dir": str(folder)}
    study, storage = write_study(tiny), str(folder / "runs")
    assert main([str(study), "--plan", "--storage", storage]) == 0
    assert not (folder / "runs").exists(), "a plan writes nothing"
    assert main([str(study), "--storage", storage]) == 0
    results = folder / "runs" / "studies" / "tiny"
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "malignant" in page
    listing = own_listing(load_study(study).datasets[0], folder)
    assert listing is not None
    [told] = patients_tested(listing)
    assert told in page
    groups = [load_file(file)["groups"] for file in (folder / "runs").rglob("test_pred*")]
    patients = [item.group for item in listing.of("test")]
    assert all(len(set(g.tolist())) == len(set(patients)) < len(g) for g in groups)
    assert f"patients {len(set(patients))}" in page
    capfd.readouterr()
    tiny["datasets"] = [
        {
            "name": "mine",
            "path": "tree",
            "split": {**split, "file": str(results / "splits-mine.csv")},
        }
    ]
    assert main([str(write_study(tiny, "again.yaml")), "--storage", storage]) == 0
    assert "0 to do" in capfd.readouterr().out


def test_bars_do_not_hide_an_image_that_is_there_twice(tmp_path: Path) -> None:
    """Catches what the report missed: one scan in train and in test, saved with other sides. The
    bars that make both square lie elsewhere, and as squares they are not alike."""
    for start, (split, number) in enumerate((("train", 12), ("val", 4), ("test", 4))):
        tree(tmp_path / "own" / split, {"a": number, "b": number}, start=100 * start)
    noise = np.random.default_rng(0).integers(0, 256, (6, 6), np.uint8)
    scan = Image.fromarray(noise).resize((120, 120), Image.Resampling.BICUBIC)
    scan.resize((60, 36)).save(tmp_path / "own" / "train" / "a" / "0.png")
    scan.resize((44, 60)).save(tmp_path / "own" / "test" / "a" / "0.png")
    ready = prepare(config("own", size=32), tmp_path, tmp_path / "data")
    splits = {split: data_source(ready, tmp_path).load(split) for split in SPLITS}
    small: dict[str, Any] = {
        split: data_source(ready, tmp_path).thumbnails(split) for split in SPLITS
    }
    (finding,) = [f for f in check_splits(splits, small) if f.kind == "near_leakage"]
    assert finding.images == (("train", 0), ("test", 0))
    assert leaked(check_splits(splits)) == [], "as squares they are alike: this shows nothing"
    fewer = ready.model_copy(update={"train_size": 8})
    kept = [
        len(data_source(fewer, tmp_path).load("train")),
        len(data_source(fewer, tmp_path).thumbnails("train")),
    ]
    assert kept == [8, 8]


def test_thumbnails_of_others_are_none(tmp_path: Path) -> None:
    """Catches an .npz of MedMNIST, which has none, and an array that only has their name."""
    arrays: dict[str, Any] = {}
    for split in SPLITS:
        arrays[f"{split}_images"] = np.zeros((12, 12, 12), np.uint8)
        arrays[f"{split}_labels"] = np.arange(12) % 2
    np.savez(tmp_path / "x.npz", **arrays)
    assert data_source(config("x.npz"), tmp_path).thumbnails("train") is None
    for strange in (np.zeros((11, 32, 32), np.uint8), np.zeros((12, 32, 32)), np.array("x")):
        np.savez(tmp_path / "x.npz", **arrays, train_thumbnails=strange)
        assert data_source(config("x.npz"), tmp_path).thumbnails("train") is None
