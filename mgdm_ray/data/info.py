"""What is known about each dataset before its pixels are read: classes, task, licence, source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mgdm_ray.config import PHANTOMS, DatasetConfig, InputError, Task
from mgdm_ray.data.npz import (
    IMAGE_SUFFIX,
    LABEL_SUFFIX,
    channels_of,
    missing_file,
    npz_path,
    open_npz,
    read_class_names,
    read_header,
    read_labels,
)

ZENODO = "https://zenodo.org/records/10519652/files"
MEDMNIST_PAPER = "MedMNIST v2: Yang et al., Scientific Data 10:41, 2023"


@dataclass(frozen=True)
class DatasetInfo:
    """Facts of one dataset at one size.

    ``classes`` stand in the order of the label index: ``classes[k]`` names label ``k``.
    ``url`` and ``md5`` are those of the official file, None where there is none.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    channels: Literal[1, 3]
    licence: str
    citation: str
    url: str | None
    md5: str | None

    @property
    def num_classes(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class _Facts:
    task: Task
    channels: Literal[1, 3]
    licence: str
    source: str
    classes: tuple[str, ...]
    md5: dict[int, str]


_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)

# Copied from medmnist.INFO, version 3.0.2 (a test compares them): importing the package itself
# would import torch, and looking a dataset up must stay cheap.
_MEDMNIST: dict[str, _Facts] = {
    "bloodmnist": _Facts(
        task="multiclass",
        channels=3,
        licence="CC BY 4.0",
        source="Acevedo et al., Data in Brief 2020",
        classes=(
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        md5={
            28: "7053d0359d879ad8a5505303e11de1dc",
            64: "2b94928a2ae4916078ca51e05b6b800b",
            128: "adace1e0ed228fccda1f39692059dd4c",
            224: "b718ff6835fcbdb22ba9eacccd7b2601",
        },
    ),
    "breastmnist": _Facts(
        task="binary",
        channels=1,
        licence="CC BY 4.0",
        source="Al-Dhabyani et al., Data in Brief 2020",
        classes=("malignant", "normal, benign"),
        md5={
            28: "750601b1f35ba3300ea97c75c52ff8f6",
            64: "742edef2a1fd1524b2efff4bd7ba9364",
            128: "363e4b3f8d712e9b5de15470a2aaadf1",
            224: "b56378a6eefa9fed602bb16d192d4c8b",
        },
    ),
    "dermamnist": _Facts(
        task="multiclass",
        channels=3,
        licence="CC BY-NC 4.0",
        source="Tschandl et al., Scientific Data 2018",
        classes=(
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        md5={
            28: "0744692d530f8e62ec473284d019b0c7",
            64: "b70a2f5635c6199aeaa28c31d7202e1f",
            128: "2defd784463fa5243564e855ed717de1",
            224: "8974907d8e169bef5f5b96bc506ae45d",
        },
    ),
    "octmnist": _Facts(
        task="multiclass",
        channels=1,
        licence="CC BY 4.0",
        source="Kermany et al., Cell 2018",
        classes=("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        md5={
            28: "c68d92d5b585d8d81f7112f81e2d0842",
            64: "e229e9440236b774d9f0dfef9d07bdaf",
            128: "0a97e76651ace45c5d943ee3f65b63ae",
            224: "abc493b6d529d5de7569faaef2773ba3",
        },
    ),
    "organamnist": _Facts(
        task="multiclass",
        channels=1,
        licence="CC BY 4.0",
        source="Bilic et al., Medical Image Analysis 2023",
        classes=_ORGANS,
        md5={
            28: "68e3f8846a6bd62f0c9bf841c0d9eacc",
            64: "2dcccc29b88e6da5a01161ef20cda288",
            128: "eeae80d0a227a8d099027e1b3cfd3b60",
            224: "50747347e05c87dd3aaf92c49f9f3170",
        },
    ),
    "organcmnist": _Facts(
        task="multiclass",
        channels=1,
        licence="CC BY 4.0",
        source="Bilic et al., Medical Image Analysis 2023",
        classes=_ORGANS,
        md5={
            28: "b9ceb9546e10131b32923c5bbeaea2b1",
            64: "3ce34a8724ea6f548e6db4744d03b6a9",
            128: "773c1f009daa3fe5d9a2a201b2a7ed94",
            224: "050f5e875dc056f6768abf94ec9995d1",
        },
    ),
    "organsmnist": _Facts(
        task="multiclass",
        channels=1,
        licence="CC BY 4.0",
        source="Bilic et al., Medical Image Analysis 2023",
        classes=_ORGANS,
        md5={
            28: "9ab87b696fb54e2a387ebe992d6ed5f1",
            64: "53a6d115339d874c25e309a994ff46d3",
            128: "ded0c5fa01a95dc4978b956f613e9b8e",
            224: "b354719e553fbbb2513d5533f52a4cb1",
        },
    ),
    "pathmnist": _Facts(
        task="multiclass",
        channels=3,
        licence="CC BY 4.0",
        source="Kather et al., PLOS Medicine 2019",
        classes=(
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        md5={
            28: "a8b06965200029087d5bd730944a56c1",
            64: "55aa9c1e0525abe5a6b9d8343a507616",
            128: "ac42d08fb904d92c244187169d1fd1d9",
            224: "2c51a510bcdc9cf8ddb2af93af1eadec",
        },
    ),
    "pneumoniamnist": _Facts(
        task="binary",
        channels=1,
        licence="CC BY 4.0",
        source="Kermany et al., Cell 2018",
        classes=("normal", "pneumonia"),
        md5={
            28: "28209eda62fecd6e6a2d98b1501bb15f",
            64: "8f4eceb4ccffa70c672198ea285246c6",
            128: "05b46931834c231683c68f40c47b2971",
            224: "d6a3c71de1b945ea11211b03746c1fe1",
        },
    ),
    "retinamnist": _Facts(
        task="ordinal",
        channels=3,
        licence="CC BY 4.0",
        source="Liu et al. (DeepDRiD), Patterns 2022",
        classes=("0", "1", "2", "3", "4"),
        md5={
            28: "bd4c0672f1bba3e3a89f0e4e876791e4",
            64: "afda852cc34dcda56f86ad2b2457dbcc",
            128: "e48e916a24454daf90583d4e6efb1a18",
            224: "eae7e3b6f3fcbda4ae613ebdcbe35348",
        },
    ),
    "tissuemnist": _Facts(
        task="multiclass",
        channels=1,
        licence="CC BY 4.0",
        source="Ljosa et al., Nature Methods 2012",
        classes=(
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        md5={
            28: "ebe78ee8b05294063de985d821c1c34b",
            64: "123ece2eba09d0aa5d698fda57103344",
            128: "61b955355d7425a89687b06cca3ce0c2",
            224: "b077128c4a949f0a4eb01517f9037b9c",
        },
    ),
}

_PHANTOMS: dict[str, tuple[Task, Literal[1, 3], tuple[str, ...]]] = {
    "phantom-ultrasound": ("binary", 1, ("benign", "malignant")),
    "phantom-fundus": ("ordinal", 3, ("0", "1", "2", "3", "4")),
    "phantom-xray": ("binary", 1, ("normal", "opacity")),
    "phantom-dermatoscopy": ("multiclass", 3, ("nevus", "melanoma", "keratosis", "vascular")),
}


def dataset_info(config: DatasetConfig, data_dir: str | Path | None) -> DatasetInfo:
    """Facts of the dataset that ``config`` names.

    Built-in datasets are looked up; of your own .npz the header of ``train_images`` and the
    training labels are read, no pixels. Raises InputError where that file is missing or damaged.
    """
    if config.path is not None:
        return _own_info(config, data_dir)
    if config.origin in PHANTOMS:
        task, channels, classes = _PHANTOMS[config.origin]
        return DatasetInfo(
            name=config.name,
            task=task,
            classes=classes,
            channels=channels,
            licence="Apache-2.0",
            citation="Drawn by code: mgdm_ray.data.phantoms. Not images of patients.",
            url=None,
            md5=None,
        )
    facts = _MEDMNIST[config.origin]
    file = npz_path(config, None).name  # refuses sizes that MedMNIST does not have
    return DatasetInfo(
        name=config.name,
        task=facts.task,
        classes=facts.classes,
        channels=facts.channels,
        licence=facts.licence,
        citation=f"{MEDMNIST_PAPER}; images: {facts.source}",
        url=f"{ZENODO}/{file}?download=1",
        md5=facts.md5[config.size],
    )


def _own_info(config: DatasetConfig, data_dir: str | Path | None) -> DatasetInfo:
    path = npz_path(config, data_dir)
    if not path.is_file():
        raise missing_file(config, path, url=None)
    with open_npz(path) as archive:
        channels = channels_of(read_header(archive, "train" + IMAGE_SUFFIX))
        labels = read_labels(archive, "train" + LABEL_SUFFIX)
        stored = read_class_names(archive)
    num_classes = int(labels.max(initial=-1)) + 1
    classes = config.classes or stored
    if classes is not None and len(classes) < num_classes:
        raise InputError(
            f"dataset {config.name!r}: {len(classes)} names of classes, but {path} has labels up "
            f"to {num_classes - 1}; name them all in 'classes'"
        )
    num_classes = len(classes or range(num_classes))
    if num_classes < 2:
        raise InputError(
            f"{path}: train_labels hold {num_classes} class(es); at least 2 are needed"
        )
    if config.task == "binary" and num_classes != 2:
        raise InputError(
            f"dataset {config.name!r}: task is 'binary', but {path} has {num_classes} classes; "
            "use 'multiclass' or 'ordinal'"
        )
    return DatasetInfo(
        name=config.name,
        task=config.task or ("binary" if num_classes == 2 else "multiclass"),
        classes=classes or tuple(str(k) for k in range(num_classes)),
        channels=channels,
        licence=config.licence or "not stated: your own data",
        citation=config.citation or f"your own data, {config.origin}",
        url=None,
        md5=None,
    )
