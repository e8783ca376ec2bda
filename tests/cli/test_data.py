"""check and init on made trees: what they count, what they refuse, how they end."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mgdm_ray.cli.data import main
from mgdm_ray.config import load_study
from mgdm_ray.data.load import data_source
from mgdm_ray.pipeline.plan import make_plan
from tests import golden
from tests.conftest import ROOT
from tests.data.sources.files import dicom, nifti, picture, tree


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, beside the data."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


Said = pytest.CaptureFixture[str]


def check(said: Said, *arguments: object) -> tuple[int, str]:
    code = main(["check", *map(str, arguments)])
    return code, said.readouterr().out


def row(text: str, name: str) -> list[str]:
    """Numbers behind the name of a class in the printed table."""
    (found,) = [line.split() for line in text.splitlines() if line.strip().startswith(name + " ")]
    return found[1:]


def lines(text: str, level: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"{level}: ")]


def errors(text: str) -> list[str]:
    return lines(text, "error")


def manifest(path: Path, rows: list[str], header: str = "path,label,split,group") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_counts_are_those_of_the_files(tmp_path: Path, here: Path, capsys: Said) -> None:
    """Catches counts of other images than the study's, classes in another order, an open page."""
    root = tree(tmp_path / "scans", {"2": 20, "10": 20})
    (root / "2" / "notes.txt").write_text("x")
    code, text = check(capsys, root)
    assert code == 0
    assert text.index("\n  2 ") < text.index("\n  10 ")
    assert row(text, "2") == ["13", "3", "4", "20"]
    assert row(text, "10") == ["13", "3", "4", "20"]
    golden.check("data-check", text)
    assert stat.S_IMODE((here / "check-scans.html").stat().st_mode) == 0o600


def test_a_damaged_file_is_named_and_ends_nothing(tmp_path: Path, capsys: Said) -> None:
    """Catches a check that dies of what it looks for, or that takes the file for an image."""
    root = tree(tmp_path / "d", {"a": 6, "b": 6})
    (root / "a" / "bad.png").write_bytes(b"no image")
    (root / "b" / "5.png").write_bytes((root / "b" / "5.png").read_bytes()[:60])
    code, text = check(capsys, root)
    assert code == 1
    (error,) = errors(text)
    assert "'a/bad.png'" in error
    assert "'b/5.png'" in error
    assert row(text, "all")[-1] == "11"


def test_duplicates_across_splits_and_labels(tmp_path: Path, capsys: Said) -> None:
    """Catches copies in another format, and the same image under two labels, passing unseen."""
    root = tree(tmp_path / "t", {"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 2})
    tree(root / "test", {"a": 2, "b": 2}, start=50)
    Image.open(root / "train/a/0.png").save(root / "test/a/copy.bmp")
    Image.open(root / "train/b/1.png").save(root / "train/a/other.png")
    code, text = check(capsys, root)
    assert code == 1
    across, conflict = errors(text)
    assert "'test/a/copy.bmp' (test, 'a') = 'train/a/0.png' (train, 'a')" in across
    assert "'train/a/other.png' (train, 'a') = 'train/b/1.png' (train, 'b')" in conflict
    assert row(text, "a") == ["6", "2", "3", "11"]


def test_near_duplicates_are_a_warning(tmp_path: Path, here: Path, capsys: Said) -> None:
    """Catches a brighter copy in the test split that no checksum finds."""
    root = tree(tmp_path / "n", {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 1})
    tree(root / "test", {"a": 1, "b": 1}, start=50)
    pixels = np.asarray(Image.open(root / "train/a/0.png")) * 0.9 + 10
    Image.fromarray(pixels.astype(np.uint8)).save(root / "test/a/near.png")
    code, text = check(capsys, root, "--out", "seen.html")
    assert code == 0
    assert any("'test/a/near.png'" in line for line in lines(text, "warning"))
    assert '<figure class="pair">' in (here / "seen.html").read_text()


def test_a_patient_in_two_splits_is_an_error(tmp_path: Path, capsys: Said) -> None:
    """Catches the leak that makes results look better than they are; counts must go on."""
    rows = []
    for index, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        picture(tmp_path / f"{index}.png", index)
        patient = "anna" if index in (0, 15) else f"p{index}"
        rows.append(f"{index}.png,{'ab'[index % 2]},{split},{patient}")
    code, text = check(capsys, manifest(tmp_path / "m.csv", rows))
    assert code == 1
    (error,) = errors(text)
    assert "'anna'" in error
    assert row(text, "all") == ["8", "4", "4", "16"]


def test_a_row_without_its_file_is_damage(tmp_path: Path, capsys: Said) -> None:
    """Catches images that are missing from the folder and from the counts without a word."""
    rows = [f"{index}.png,{'ab'[index % 2]},," for index in range(9)]
    for index in range(8):
        picture(tmp_path / f"{index}.png", index)
    code, text = check(capsys, manifest(tmp_path / "m.csv", rows))
    assert code == 1
    (error,) = errors(text)
    assert "'8.png'" in error
    assert row(text, "all")[-1] == "8"


def test_group_makes_patients_known(tmp_path: Path, capsys: Said) -> None:
    """Catches a hint that does not work when followed, and patients that are torn apart."""
    for patient in range(12):
        for index in range(3):
            name = f"P{patient:02d}_{index}.png"
            picture(tmp_path / "g" / "ab"[patient % 2] / name, 3 * patient + index)
    code, text = check(capsys, tmp_path / "g")
    assert code == 0
    hint = text.split("--group '")[1].split("'")[0]
    code, text = check(capsys, tmp_path / "g", "--group", hint)
    assert code == 0
    assert "patients: 12, with 3 to 3 images each (median 3); 0 " in text
    assert "--group" not in text


def test_dicom_names_tags_and_never_what_they_hold(
    tmp_path: Path, here: Path, capsys: Said
) -> None:
    """Catches a patient's name on the terminal or on the page."""
    rng = np.random.default_rng(0)
    for index in range(8):
        pixels = rng.integers(0, 3000, (24, 30), dtype=np.uint16)
        tags = {"PatientID": f"SECRET{index // 2}"} | ({"PatientName": "MUSTER"} if index else {})
        dicom(tmp_path / "dcm" / "ab"[index // 4] / f"{index}.dcm", pixels, **tags)
    _, text = check(capsys, tmp_path / "dcm")
    assert any("PatientID 8, PatientName 7" in line for line in lines(text, "warning"))
    assert "patients: 4, with 2 to 2 images each" in text
    shown = text + (here / "check-dcm.html").read_text()
    assert "SECRET" not in shown
    assert "MUSTER" not in shown


def test_depth_turn_text_and_flat_images(tmp_path: Path, capsys: Said) -> None:
    """Catches sizes before EXIF turned them, 16 bits told as 8, unseen text and empty images."""
    root = tree(tmp_path / "k", {"a": 5, "b": 5})
    deep = np.random.default_rng(1).integers(0, 60000, (20, 20), dtype=np.uint16)
    Image.fromarray(deep).save(root / "a" / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.random.default_rng(2).integers(0, 255, (10, 40), dtype=np.uint8)
    Image.fromarray(turned).save(root / "b" / "turned.jpg", exif=exif)
    Image.new("L", (30, 30), 7).save(root / "a" / "flat.png")
    written = Image.new("L", (200, 200), 50)
    font = ImageFont.load_default(18)
    ImageDraw.Draw(written).text((4, 4), "ANNA MUSTER 1950", fill=255, font=font)
    written.save(root / "b" / "written.png")
    code, text = check(capsys, root)
    assert code == 0
    assert "I;16 16 bit 1" in text
    assert any("'a/flat.png'" in line for line in lines(text, "warning"))
    assert any("'b/written.png'" in line for line in lines(text, "warning"))
    small = tree(tmp_path / "j", {"a": 1, "b": 1})
    for name in "ab":
        Image.fromarray(turned).save(small / name / "0.png")
        Image.fromarray(turned).save(small / name / "0.jpg", exif=exif)
        (small / name / "0.png").unlink()
    _, text = check(capsys, small)
    assert "smallest 10 x 40" in text


def test_what_is_no_data_ends_with_two(tmp_path: Path, capsys: Said) -> None:
    """Catches a traceback, or an exit code that says the data were bad where the path was."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    for wrong in ("nowhere", "empty", "a.txt"):
        assert main(["check", str(tmp_path / wrong)]) == 2
        assert main(["init", str(tmp_path / wrong)]) == 2
    root = tree(tmp_path / "one", {"only": 3})
    assert main(["check", str(root), "--size", "9999"]) == 2
    assert main(["check", str(root), "--columns", "pixels=x"]) == 2
    assert main(["check", str(root), "--out", "page.png"]) == 2
    capsys.readouterr()
    code, text = check(capsys, root)
    assert code == 1
    assert any("'only'" in line for line in errors(text))


def sources(root: Path) -> dict[str, Path]:
    """One small source of every kind, 12 images of two classes each."""
    rng = np.random.default_rng(5)
    rows = []
    for index in range(12):
        label = "ab"[index % 2]
        picture(root / "m" / f"{index}.png", index + 100, 40)
        rows.append(f"{index}.png,{label},p{index}")
        dicom(root / "dcm" / label / f"{index}.dcm", rng.integers(0, 900, (40, 40), np.uint16))
        nifti(root / "nii" / label / f"{index}.nii.gz", rng.random((20, 20, 3), np.float32))
        picture(root / "names" / f"cl{index % 2}: #'x'" / f"{index}.png", index, 40)
    arrays = {
        f"{split}_{what}": rng.integers(0, 255, (6, 20, 20), np.uint8)
        if what == "images"
        else np.array([0, 1] * 3)
        for split in ("train", "val", "test")
        for what in ("images", "labels")
    }
    np.savez(root / "breastmnist.npz", allow_pickle=False, **arrays)
    return {
        "folders": tree(root / "folders", {"a": 9, "b": 3}),
        "manifest": manifest(root / "m" / "list.csv", rows, "path,label,group"),
        "dicom": root / "dcm",
        "nifti": root / "nii",
        "odd names": root / "names",
        "npz": root / "breastmnist.npz",
    }


def test_init_writes_a_study_that_plans(tmp_path: Path, here: Path, capsys: Said) -> None:
    """Catches a written file that is refused, for every kind of source, and a wrong number."""
    for kind, path in sources(tmp_path).items():
        out = here / f"{kind}.yaml"
        assert main(["init", str(path), "--out", str(out)]) == 0, kind
        text = capsys.readouterr().out
        study = load_study(out)
        plan = make_plan(study, {d.name: data_source(d).fingerprint() for d in study.datasets})
        assert f"{len(plan.jobs)} jobs" in text
        assert study.datasets[0].classes is not None
        code, said = check(capsys, out)
        assert code == 0, said
        assert study.datasets[0].name in said


def test_init_weighs_uneven_classes(tmp_path: Path, here: Path) -> None:
    """Catches a study that learns only the frequent class, and a page written over."""
    root = tree(tmp_path / "uneven", {"many": 40, "few": 4})
    assert main(["init", str(root)]) == 0
    study = load_study(here / "uneven.yaml")
    assert study.synthetic.balance == "balanced"
    assert study.downstream.class_weighted
    assert '"few" 4' in (here / "uneven.yaml").read_text()
    assert main(["init", str(root), "--name", "retinamnist"]) == 2
    assert main(["init", str(root), "--name", "scans.v2"]) == 0
    assert load_study(here / "scans.v2.yaml").name == "scans.v2"
    before = (here / "uneven.yaml").read_bytes()
    assert main(["init", str(root)]) == 2
    assert (here / "uneven.yaml").read_bytes() == before


TINY_RUN = (
    "arms=[real, disturb]",
    "seeds=1",
    "denoiser.steps=4",
    "guide.steps=4",
    "sampling.num_inference_steps=3",
    "search.trials=2",
    "search.images=8",
    "search.steps=2",
    "judge.steps=2",
    "downstream.steps=2",
)


@pytest.mark.long
def test_what_init_writes_runs(tmp_path: Path, here: Path) -> None:
    """Catches a study that plans but whose sizes no job takes, down to the report."""
    root = tree(tmp_path / "scans", {"a": 20, "b": 16})
    assert main(["init", str(root)]) == 0
    shorter = [word for value in TINY_RUN for word in ("--set", value)]
    done = subprocess.run(
        [sys.executable, "-m", "mgdm_ray.study", "scans.yaml", *shorter],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (here / "runs/studies/scans/report.html").is_file()
