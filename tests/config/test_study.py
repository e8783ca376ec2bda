"""The study file: what is refused, with which message, and what the short forms mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgdm_ray import config
from mgdm_ray.config import DenoiserConfig, InputError, StudyConfig, load_study


def refusal(write_study: Any, study: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_study(write_study(study), overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"netwroks": ["alexnet"]}, ["'netwroks'", "'networks'"]),
        (
            {"networks": ["alexnet", "resnet18", "resnet19"]},
            ["'resnet19' in networks[2]", "'resnet18'", "alexnet, "],
        ),
        ({"datasets": ["brestmnist"]}, ["'brestmnist'", "'breastmnist'"]),
        ({"arms": ["real", "distrub"]}, ["'distrub' in arms[1]", "'disturb'"]),
        ({"setting": {"measurement": "entropi"}}, ["'entropi'", "'entropy'"]),
        ({"denoiser": {"recipe": ["paper"]}}, ["denoiser.recipe", "small, paper"]),
        ({"setting": {"interval": "often"}}, ["setting.interval", "often", "auto"]),
        ({"setting": {"interval": [9, 2]}}, ["setting.interval", "[9, 2]"]),
        ({"sampling": {"guidance_interval": [0, 1000]}}, ["guidance_interval", "999"]),
        ({"downstream": {"steps": 0}}, ["downstream.steps", "got 0"]),
        ({"margin": 0}, ["margin", "got 0"]),
        ({"margin": 1}, ["margin", "got 1"]),
        ({"margin": "small"}, ["margin", "'small'"]),
        ({"downstream": {"steps": 5, "epochs": 2}}, ["'steps'", "'epochs'", "in downstream"]),
        (
            {"downstream": {"augment": "randaugmnt"}},
            ["downstream.augment", "'randaugmnt'", "randaugment"],
        ),
        (
            {"downstream": {"recipes": {"resnet19": {"batch_size": 4}}}},
            ["'resnet19'", "'resnet18'", "downstream.recipes"],
        ),
        ({"downstream": {"recipes": {"resnet18": {"lr": 1}}}}, ["'lr'", "learning_rate"]),
        (
            {"downstream": {"class_weighted": True, "class_balanced": True}},
            ["'class_weighted'", "'class_balanced'", "in downstream"],
        ),
        ({"arms": ["real", "augment"]}, ["'augment'", "downstream.augment 'standard'", "'none'"]),
        ({"denoiser": {"learning_rate": float("nan")}}, ["denoiser.learning_rate", "nan"]),
        ({"networks": ["alexnet", "alexnet"]}, ["'alexnet'", "networks"]),
        ({"seeds": 0}, ["seeds", "1 .. 1000", "got 0"]),
        ({"seeds": True}, ["seeds", "got True"]),
        ({"seeds": "x"}, ["seeds must be a number of seeds (5) or a list ([0, 1, 2]); got 'x'"]),
        ({"arms": "real"}, ["arms must be a list ([...]); got 'real'"]),
        (
            {"image_size": 18, "guide": {"unet": {"channels": [16] * 3}}},
            ["guide.unet", "18", "multiple of 4"],
        ),
        (
            {"resources": {"train_workers": 9}},
            ["denoiser.batch_size 8", "9 workers", "resources.train_workers"],
        ),
        (
            {"resources": {"train_workers": [1, 9]}},
            ["denoiser.batch_size 8", "9 workers", "resources.train_workers"],
        ),
        (
            {"resources": {"sharding": "fsdp"}, "guide": {"precision": "float16"}},
            ["guide.precision 'float16'", "resources.sharding 'fsdp'", "'bfloat16'"],
        ),
        ({"resources": {"train_workers": [3, 2]}}, ["resources.train_workers", "3", "2"]),
        (
            {"resources": {"compile_training": True, "sharding": "fsdp"}},
            ["resources", "compile_training", "sharding 'fsdp'"],
        ),
        ({"setting": {"interval": [600, 100]}}, ["setting.interval", "[600, 100]"]),
        (
            {"sampling": {"encode": "stored", "strength": 0.5, "inversion_iterations": 2}},
            ["sampling", "'inversion_iterations', 'strength'", "'encode: invert'"],
        ),
        (
            {"sampling": {"encode": "stored"}, "reference": ["label_dropout"]},
            ["sampling.encode 'stored'", "deterministic", "reference 'label_dropout'", "'invert'"],
        ),
        (
            {"sampling": {"encode": "stored"}, "setting": {"decode_guidance_scale": 2}},
            ["sampling.encode 'stored'", "decode_guidance_scale", "got 2"],
        ),
        (
            {"sampling": {"encode": "stored"}, "search": {"space": {"classifier_scale": [0, 1]}}},
            ["sampling.encode 'stored'", "classifier_scale 0"],
        ),
        (
            {"sampling": {"inversion_iterations": 2}, "denoiser": {"recipe": "paper"}},
            ["sampling.inversion_iterations", "denoiser.prediction 'v'"],
        ),
        (
            {"sampling": {"clip_stage_two": True, "clip": False}},
            ["'clip_stage_two'", "'clip'", "in sampling"],
        ),
        ({"reference": ["clip", "unit8"]}, ["'unit8' in reference[1]", "'uint8'"]),
        ({"reference": ["clip", "clip"]}, ["'clip'", "reference"]),
        (
            {"synthetic": {"curve": {"ratios": [0.5], "arms": ["augment"]}}},
            ["'augment'", "synthetic.curve.arms"],
        ),
        (
            {"synthetic": {"ratio": 0.5, "curve": {"ratios": [2, 0.5]}}},
            ["'curve.ratios'", "0.5", "'ratio'"],
        ),
        (
            {"synthetic": {"curve": {"ratios": [0.5], "networks": ["vgg16_bn"]}}},
            ["synthetic.curve.networks", "'vgg16_bn'", "squeezenet1_1, alexnet"],
        ),
        ({"synthetic": {"balance": "top_up"}}, ["'per_class'", "'balance: top_up'"]),
        ({"synthetic": {"per_class": 9}}, ["'per_class'", "'balance: top_up'"]),
        (
            {"synthetic": {"balance": "top_up", "per_class": 9, "curve": {"ratios": [0.5]}}},
            ["'curve'", "'balance: top_up'"],
        ),
        ({"judge": None, "limits": {"copies": 0.1}}, ["'limits'", "'judge'"]),
        (
            {"networks": ["alexnet"], "judge": {"network": "alexnet"}},
            ["judge.network 'alexnet'", "judge: null"],
        ),
        ({"networks": ["timm/no such"]}, ["'timm/no such' in networks[0]", "timm.list_models()"]),
        (
            {"datasets": [{"name": "retina-small", "source": "retinamist"}]},
            ["'retinamist'", "'retinamnist'"],
        ),
        (
            {"reference": ["alignment"], "sampling": {"inversion_iterations": 2}},
            ["reference 'alignment'", "sampling.inversion_iterations 0"],
        ),
        (
            {"reference": ["clip"], "sampling": {"clip_stage_two": True}},
            ["sampling.clip_stage_two", "false"],
        ),
        ({"sampling": {"strength": 0}}, ["sampling.strength", "got 0"]),
        (
            {"setting": {"measurement": "mutual_information"}},
            ["'mutual_information'", "guide.dropout"],
        ),
        (
            {"search": {"space": {"measurement": ["entropy", "mutual_information"]}}},
            ["'mutual_information'", "guide.dropout"],
        ),
        ({"setting": {"gradient": "relativ"}}, ["'relativ' in setting.gradient", "'relative'"]),
        ({"tracking": {"uri": "nonsense"}}, ["tracking.uri", "http, ", "'nonsense'"]),
        ({"name": "../evil"}, ["name", "got '../evil'"]),
        (
            {"search": {"space": {"uncertainty_scale": {"low": 2, "high": 1}}}},
            ["search.space.uncertainty_scale", "2.0", "1.0"],
        ),
        (
            {
                "search": {
                    "space": {
                        "measurement": ["entropy"],
                        "per_measurement": {"energy": {"uncertainty_scale": {"low": 1, "high": 2}}},
                    }
                }
            },
            ["'per_measurement'", "'energy'", "['entropy']"],
        ),
        (
            {"search": {"pruner": "asha", "networks": ["alexnet"]}},
            ["pruner 'asha'", "'networks'", "none"],
        ),
        (
            {
                "search": {
                    "pruner": "median",
                    "objective": "accuracy_and_cost",
                    "networks": ["alexnet", "resnet18"],
                }
            },
            ["pruner 'median'", "'accuracy_and_cost'", "none"],
        ),
        ({"search": {"sampler": "nsga3"}}, ["'nsga3' in search.sampler", "'nsga2'"]),
        (
            {"search": {"sampler": {"name": "TPESampler", "multivarate": True}}},
            ["'multivarate' in search.sampler", "'multivariate'"],
        ),
        (
            {"search": {"sampler": {"name": "TPESampler", "n_startup_trials": "5"}}},
            ["TPESampler.n_startup_trials", "integer", "got '5'"],
        ),
        (
            {"search": {"pruner": {"name": "HyperbandPruner"}}},
            ["'HyperbandPruner' in search.pruner", "PercentilePruner"],
        ),
        (
            {"search": {"start": [{"measurement": "energy", "uncertainty_scale": 0.1}]}},
            ["start[0]", "'energy'", "space.measurement"],
        ),
        (
            {"search": {"start": [{"measurement": "entropy", "uncertainty_scale": 9}]}},
            ["start[0]", "uncertainty_scale 9", "0.02 to 0.5", "'entropy'"],
        ),
        (
            {
                "search": {
                    "start": [{"measurement": "entropy", "uncertainty_scale": 0.1}],
                    "space": {"guidance_scale": [1, 2]},
                }
            },
            ["search.start[0]", "1 and 0, 2 and 0"],
        ),
        (
            {
                "search": {
                    "trials": 1,
                    "start": 2 * [{"measurement": "entropy", "uncertainty_scale": 0.1}],
                }
            },
            ["'start'", "2 points", "'trials' is 1"],
        ),
    ],
)
def test_a_mistake_names_place_value_and_way_out(
    tiny: dict[str, Any], write_study: Any, change: dict[str, Any], parts: list[str]
) -> None:
    """Would catch an error that leaves the user searching."""
    message = refusal(write_study, {**tiny, **change})
    assert "study.yaml:" in message
    for part in parts:
        assert part in message


def test_the_line_is_that_of_the_mistake(tmp_path: Path) -> None:
    """Would catch a line number taken from a neighbour."""
    text = "name: x\ndatasets: [breastmnist]\nnetworks:\n  - alexnet\n  - resnet19\n"
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"s\.yaml:5: .*'resnet19' in networks\[1\]"):
        load_study(path)


def test_all_mistakes_are_told_at_once(tiny: dict[str, Any], write_study: Any) -> None:
    """Would catch stopping at the first one: a user mends a file in one go."""
    message = refusal(write_study, {**tiny, "seeds": 0, "arms": ["rael"], "x": 1})
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1, 2", "s.yaml:1:9"),
        ("- just\n- a list\n", "got list"),
        ("", "got nothing"),
        ("name: a\nname: b\n", "s.yaml:2:1"),
        ("a: !!python/object/apply:os.system ['true']\n", "s.yaml:1:4"),
        ("a: &a [*a]\n", "30 deep"),
    ],
)
def test_what_is_not_a_study_file_is_refused(tmp_path: Path, text: str, part: str) -> None:
    """Would catch a traceback, or code run from YAML."""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_study(path)
    assert part in str(error.value)


def test_a_missing_file_lists_the_studies_there_are(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("name: one")
    with pytest.raises(InputError, match=r"one\.yaml.*quickstart"):
        load_study(tmp_path / "two.yaml")


def test_a_bare_name_is_a_shipped_study_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a shipped study that hides the user's own file, or a typo that runs another."""
    monkeypatch.chdir(tmp_path)
    assert load_study("quickstart").name == "quickstart"
    with pytest.raises(
        InputError, match=r"quicksart.*grid, grid-cpu, medmnist-cpu, quickstart, top-up"
    ):
        load_study("quicksart")
    with pytest.raises(InputError, match=r"quickstart\.yaml"):
        load_study("quickstart.yaml")
    (tmp_path / "quickstart").write_text("name: mine\ndatasets: [breastmnist]\nnetworks: [alexnet]")
    assert load_study("quickstart").name == "mine"


def test_overrides_reach_lists_and_new_keys(tiny: dict[str, Any], write_study: Any) -> None:
    """Would catch --set that only changes what already stands in the file."""
    path = write_study(tiny)
    changed = load_study(
        path, ["downstream.steps=7", "networks.1=resnet18", "tracking.experiment=mine", "seeds=2"]
    )
    assert changed.downstream.steps == 7
    assert changed.networks[1] == "resnet18"
    assert changed.tracking.experiment == "mine"
    assert changed.seeds == (0, 1)


@pytest.mark.parametrize("override", ["downstream", "=3", "networks.9=alexnet", "name.first=x"])
def test_a_bad_override_is_named(tiny: dict[str, Any], write_study: Any, override: str) -> None:
    assert f"--set {override}" in refusal(write_study, tiny, override)


def test_a_bad_overridden_value_is_blamed_on_the_override(
    tiny: dict[str, Any], write_study: Any
) -> None:
    """Would catch sending the user to a line of the file that is right."""
    message = refusal(write_study, tiny, "downstream.steps=-1")
    assert message.startswith("--set downstream.steps=-1:")


def test_recipes_fill_only_what_is_not_given() -> None:
    """Would catch a recipe that overrides the user, or does nothing."""
    paper = DenoiserConfig.model_validate({"recipe": "paper", "learning_rate": 0.5})
    assert (paper.schedule, paper.prediction, paper.loss_weight) == ("linear", "epsilon", "mgdm")
    assert paper.learning_rate == 0.5
    assert DenoiserConfig().prediction == "v"


def test_the_resolved_study_reads_back_the_same(tiny: dict[str, Any], write_study: Any) -> None:
    """Would catch a default that cannot be written down: study.resolved.yaml must be a study."""
    study = load_study(write_study(tiny))
    text = yaml.safe_dump(study.model_dump(mode="json"))
    assert StudyConfig.model_validate(yaml.safe_load(text)) == study


def models_in(model: Any) -> list[Any]:
    """``model`` and every model that its fields are made of."""
    found = [model]
    for field in model.model_fields.values():
        for part in config.file._models(field.annotation):
            found += models_in(part)
    return found


@pytest.mark.parametrize("model", dict.fromkeys(models_in(StudyConfig)), ids=lambda m: m.__name__)
def test_every_field_has_a_docstring_or_is_a_section(model: Any) -> None:
    """Would catch a key that nobody explains: a section's own docstring explains a section."""
    own_words = {"low", "high", "cpus_per_worker", "gpus_per_worker", "gpus_per_task", "experiment"}
    for name, field in model.model_fields.items():
        section = any(part.__doc__ for part in config.file._models(field.annotation))
        assert field.description or section or name in own_words, f"{model.__name__}.{name}"


def test_credentials_in_a_study_are_refused_and_not_repeated(
    tiny: dict[str, Any], write_study: Any
) -> None:
    """Would catch a password in the log, in study.resolved.yaml and in the report."""
    for uri in ("https://me:hunter2@host/", "postgresql://me:hunter2@host/db"):
        message = refusal(write_study, {**tiny, "tracking": {"uri": uri}})
        assert "MLFLOW_TRACKING_PASSWORD" in message
        assert "hunter2" not in message


@pytest.mark.parametrize("override", ["name=2020-13-45", "x={? [a] : b}", "x=!!python/none"])
def test_an_override_that_is_no_yaml_is_refused(
    tiny: dict[str, Any], write_study: Any, override: str
) -> None:
    """Would catch the traceback of a date that does not exist."""
    assert refusal(write_study, tiny, override).startswith(f"--set {override}: ")


def test_a_mistake_is_blamed_on_the_override_that_made_it(
    tiny: dict[str, Any], write_study: Any
) -> None:
    """Would catch matching by the beginning of a name: seed is not seeds."""
    message = refusal(write_study, tiny, "seed=1", "seeds=0")
    assert message.startswith("--set seeds=0: ")


def test_a_list_of_training_sizes_makes_variants(write_study: Any, tiny: dict[str, Any]) -> None:
    """Catches variants that count as datasets of their own: they share their test images."""
    entry = {"name": "retinamnist", "train_size": [50, 200]}
    datasets = load_study(write_study(tiny | {"datasets": [entry], "image_size": 28})).datasets
    assert [(d.name, d.source, d.origin, d.train_size, d.size) for d in datasets] == [
        ("retinamnist-50", "retinamnist", "retinamnist", 50, 28),
        ("retinamnist-200", "retinamnist", "retinamnist", 200, 28),
    ]


def test_any_network_of_torchvision_or_timm_may_be_named() -> None:
    """Catches a list that knows the ten only."""
    for name in ("resnet34", "swin_t", "timm/resnet10t"):
        assert config.known_network(name) == name
