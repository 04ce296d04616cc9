"""The config of a run: one YAML file plus `section.key=value` overrides, strict.

All sections but `run` change the numbers; nothing in `run` may. A resumed run must agree in all but `run`.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sharding.recording import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen section; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """What is streamed, and how large it arrives on the device."""

    shards: tuple[str, ...] = Field(min_length=1)  # data sets: shard directories or tars, local or URLs
    cap: Annotated[int, Field(ge=0)] = 0  # samples of a data set per epoch at most (US-JEPA 4.3: 50,000); 0: all
    weights: tuple[Annotated[float, Field(ge=0)], ...] = ()  # factor on each data set's share; empty: 1
    window: Annotated[int, Field(ge=0)] = 0  # samples shuffled among each other; 0: all; remote sets want a few shards
    groups: Count = 64  # segments of a set that are read side by side; remote sets want few, but one per node
    max_bad_fraction: Share = 0.001  # of an epoch's samples that may be unreadable
    canvas: Count = 256  # side in pixels of the square that workers hand over; crops are cut from it
    seed: int = 0  # of order, crops, flips, masks and initial weights

    @model_validator(mode="after")
    def _one_weight_per_data_set(self) -> "DataConfig":
        if self.weights and len(self.weights) != len(self.shards):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.shards)} data sets; give one for each, or none"
            )
        return self


class AugmentConfig(Section):
    """Applied identically to frame and region, on the device (US-JEPA Tab. 4)."""

    crop_scale: tuple[Share, Share] = (0.6, 1.0)  # share of the canvas' area
    crop_aspect: tuple[float, float] = (0.75, 1.33)
    horizontal_flip: Share = 0.5  # probability; left and right are clinical in some organs
    vertical_flip: Share = 0.5


class MaskConfig(Section):
    """One context block and `num_targets` target blocks of patches (US-JEPA section 4.2, Tab. 4)."""

    region: bool = True  # USrc-JEPA: blocks keep only patches inside the region
    region_share: Share = 0.01  # of a patch's pixels inside the region for the patch to count
    context_scale: tuple[Share, Share] = (0.85, 1.0)  # share of the grid's area
    target_scale: tuple[Share, Share] = (0.075, 0.125)
    aspect: tuple[float, float] = (0.75, 1.5)
    num_targets: Count = 4
    context_tokens: Count = 64  # K, the same for every image
    target_tokens: Count = 18  # L, per target block
    min_patches: Count = 10  # fewer inside the region: the block is drawn again
    tries: Count = 8  # draws per block


class EncoderConfig(Section):
    """The student: any plain timm ViT."""

    arch: str = "vit_base_patch16_224"
    image_size: Count = 224  # pixels, a multiple of the patch size


class PredictorConfig(Section):
    """The narrow transformer from context tokens to latents."""

    depth: Count = 12
    width: Count = 384
    num_heads: Count = 12


class TeacherConfig(Section):
    """The frozen teacher: a run directory, an encoder folder, or a timm name."""

    source: str
    weights: Path | None = None  # for a timm name: a file in timm's layout; none: timm's own download


class TargetConfig(Section):
    """How latents become targets, and how a prediction is scored."""

    normalisation: Literal["none", "layernorm", "channel"] = "channel"
    measure_batches: Count = 4  # `channel`: mean and deviation over the first that many global batches
    loss: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    beta: float = Field(default=1.0, gt=0)


class OptimConfig(Section):
    """AdamW under warm-up and cosine; all of it a function of the step (US-JEPA Tab. 4)."""

    batch: Count = 128  # samples per step over all ranks
    steps: Count
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    start_lr: float = 5e-6
    lr: float = 5e-5
    final_lr: float = 5e-7
    weight_decay: tuple[float, float] = (0.04, 0.4)  # from, to
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(default=1.0, ge=0)  # gradient norm; 0 is off
    precision: Literal["fp32", "bf16"] = "bf16"


class RunConfig(Section):
    """Where and how; must not change results."""

    dir: Path
    micro_batch: Count = 64  # samples per rank and forward
    zero_stage: Literal[0, 1, 2, 3] = 1
    num_workers: Annotated[int, Field(ge=0)] = 2  # decoding processes per rank
    cache_gib: float = Field(default=50, gt=0)  # of remote shards on the disk of a node, in $US_JEPA_CACHE
    log_every: Count = 10  # steps
    save_every: Count = 500  # steps
    keep: Count = 2  # checkpoints
    experiment: str = "us-jepa"  # MLflow
    tracking_uri: str | None = None  # MLflow; none: MLFLOW_TRACKING_URI, else sqlite in ./build


class PretrainConfig(Section):
    """Everything that `deepspeed train/pretrain.py --config FILE` reads."""

    objective: Literal["salt", "pixel"] = "salt"
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    masks: MaskConfig = MaskConfig()
    student: EncoderConfig = EncoderConfig()
    predictor: PredictorConfig = PredictorConfig()
    teacher: TeacherConfig | None = None
    target: TargetConfig = TargetConfig()
    optim: OptimConfig
    run: RunConfig

    @model_validator(mode="after")
    def _teacher_fits_objective(self) -> "PretrainConfig":
        if (self.objective == "salt") != (self.teacher is not None):
            raise ValueError(
                f"objective is {self.objective} and teacher is {self.teacher}; salt needs a teacher, pixel takes none"
            )
        return self


def load_config(path: Path, overrides: list[str]) -> PretrainConfig:
    """Read a YAML file and apply overrides like `optim.lr=3e-4`; values are YAML.

    Raises:
        InputError: one sentence that names file, key, value and what would be right.

    """
    if not path.is_file():
        raise InputError(f"config {path}: no such file; train/configs has examples")
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: not YAML: {' '.join(str(error).split())}") from error
    for override in overrides:
        _apply(content, override)
    try:
        return PretrainConfig.model_validate(content)
    except ValidationError as error:
        raise InputError(f"config {path}: {_sentence(error)}") from None


def save_config(cfg: PretrainConfig, path: Path) -> None:
    """Write the resolved config as YAML that load_config reads back."""
    path.write_text(yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False))


def results_differ(old: PretrainConfig, new: PretrainConfig) -> list[str]:
    """Keys outside `run` that differ, as `section.key: old -> new`."""
    before, after = _flat(old.model_dump(exclude={"run"})), _flat(new.model_dump(exclude={"run"}))
    keys = sorted(before.keys() | after.keys())
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def flat_config(cfg: PretrainConfig) -> dict[str, str]:
    """`section.key` to text, for MLflow parameters: what changes results, nothing of `run`."""
    return {key: str(value) for key, value in _flat(cfg.model_dump(exclude={"run"}, mode="json")).items()}


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _apply(content: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals:
        raise InputError(f"override {override!r}: give section.key=value, for example optim.lr=3e-4")
    *sections, key = name.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise InputError(f"override {override!r}: {section} is not a section")
    content[key] = yaml.safe_load(value)


def _sentence(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"])) or "config"
        if problem["type"] == "extra_forbidden":
            parts.append(f"{place}: unknown key{_suggestion(problem['loc'])}")
        elif problem["type"] == "missing":
            parts.append(f"{place}: missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{place}: {message}" + (f", not {problem['input']!r}" if problem["loc"] else ""))
    return "; ".join(parts)


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: Any = PretrainConfig
    for name in location[:-1]:
        annotation = section.model_fields[name].annotation
        section = next(
            kind for kind in (annotation, *getattr(annotation, "__args__", ())) if hasattr(kind, "model_fields")
        )
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(section.model_fields)}"
