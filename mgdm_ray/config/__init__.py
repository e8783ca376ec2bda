"""The study file: frozen pydantic models, unknown keys refused, one docstring per field."""

from mgdm_ray.config.base import (
    ARMS,
    GUIDED_ARMS,
    MEASUREMENTS,
    MEDMNIST,
    MEMBER_MEASUREMENTS,
    NETWORKS,
    PHANTOMS,
    REFERENCE_FAULTS,
    SAMPLED_ARMS,
    TIMM,
    TORCHVISION,
    Arm,
    Frozen,
    InputError,
    MeasurementName,
    Name,
    Network,
    ReferenceFault,
    SampledArm,
    Task,
    known_network,
    require_known,
    unique,
)
from mgdm_ray.config.data import (
    DatasetConfig,
    LimitsConfig,
    PhantomConfig,
    RatioCurve,
    ReadingConfig,
    SplitConfig,
    SyntheticConfig,
)
from mgdm_ray.config.diffusion import (
    RECIPES,
    DenoiserConfig,
    GuidanceControls,
    GuidanceSetting,
    GuideConfig,
    SamplingConfig,
    TrainConfig,
    UNetConfig,
)
from mgdm_ray.config.file import MAX_STUDY_BYTES, apply_override, load_study
from mgdm_ray.config.search import (
    ConfirmConfig,
    MeasurementSpace,
    ScaleRange,
    SearchConfig,
    SearchSpace,
    StartPoint,
)
from mgdm_ray.config.study import (
    DownstreamConfig,
    JudgeConfig,
    ResourcesConfig,
    StudyConfig,
    TrackingConfig,
)
