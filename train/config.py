"""The config of a run: its sections and what each key means. config_file.py reads and writes it.

All sections but `run` change the numbers; nothing in `run` may. A resumed run must agree in all but `run`.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from train.places import written_out

_LARGEST_SEED = 2**63 - 1
_POSITION_PARTS = 4  # of an embedding of positions: sine and cosine of row and column


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first number must not be above the second")
    return pair


def _finite(args: dict[str, Any]) -> dict[str, Any]:
    for name, value in args.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is not finite")
    return args


Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountFrom0 = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
PositiveOr0 = Annotated[float, Field(ge=0)]
Shares = Annotated[tuple[Share, ...], Field(min_length=1)]  # one for all data sets, or one for each
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
AreaRange = Annotated[tuple[PositiveShare, PositiveShare], AfterValidator(_ordered)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
Name = Annotated[str, Field(min_length=1)]
Place = Annotated[Name, AfterValidator(written_out)]  # a path or a URL
LocalPath = Annotated[Path, BeforeValidator(written_out)]


class Section(BaseModel):
    """A frozen section; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - of any field
        values = value if isinstance(value, list | tuple) else (value,)
        is_switch = cls.model_fields[str(info.field_name)].annotation is bool
        if not is_switch and any(isinstance(one, bool) for one in values):
            raise ValueError("must not be true or false (to YAML, also yes, no, on and off); put text in quotes")
        return value


class DataConfig(Section):
    """What is streamed, and how large it arrives on the device."""

    shards: tuple[Place, ...] = Field(min_length=1)  # data sets: shard directories or tars, local or URLs
    cap: CountFrom0 = 0  # samples of a data set per epoch at most (US-JEPA 4.3: 50,000); 0: all
    weights: tuple[PositiveOr0, ...] = ()  # factor on each data set's share; empty: 1
    window: CountFrom0 = 0  # samples shuffled among each other; 0: all; remote sets want a few shards
    groups: Count = 64  # segments of a set that are read side by side; remote sets want few, but one per node
    max_bad_fraction: Share = 0.001  # of an epoch's samples that may be unreadable
    canvas: Count = 256  # side in pixels of the square that workers hand over; crops are cut from it
    val_samples: CountFrom0 = 1024  # of the val split that are scored; 0: no validation
    seed: int = Field(default=0, ge=0, le=_LARGEST_SEED)  # of order, crops, flips, masks and initial weights

    @model_validator(mode="after")
    def _one_weight_per_data_set(self) -> "DataConfig":
        if self.weights and len(self.weights) != len(self.shards):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.shards)} data sets; give one for each, or none"
            )
        if self.weights and not any(self.weights):
            raise ValueError("all weights are 0; give one data set a weight above 0")
        return self


class AugmentConfig(Section):
    """Applied identically to frame and region, on the device (US-JEPA Tab. 4; the paper gives no strengths)."""

    crop_scale: AreaRange = (0.6, 1.0)  # share of the canvas' area
    crop_aspect: Range = (0.75, 1.33)
    horizontal_flip: Shares = (0.5,)  # probability; left and right are clinical in some organs
    vertical_flip: Shares = (0.5,)
    blur: Share = 0.3  # probability
    blur_sigma: Range = (0.3, 1.5)  # pixels
    speckle: Share = 0.3  # probability of multiplicative, correlated noise
    speckle_strength: ShareRange = (0.05, 0.25)  # deviation of the factor
    contrast: Share = 0.5  # probability
    contrast_range: Range = (0.7, 1.3)  # factor on the distance to the region's mean


class MaskConfig(Section):
    """One context block and `num_targets` target blocks of patches (US-JEPA section 4.2, Tab. 4)."""

    region: bool = True  # USrc-JEPA: blocks keep only patches inside the region
    region_share: Share = 0.01  # of a patch's pixels inside the region for the patch to count
    context_scale: AreaRange = (0.85, 1.0)  # share of the grid's area
    target_scale: AreaRange = (0.075, 0.125)
    aspect: Range = (0.75, 1.5)
    num_targets: Count = 4
    context_tokens: Count = 64  # K, the same for every image
    target_tokens: Count = 18  # L, per target block
    min_patches: Count = 10  # fewer inside the region: the block is drawn again
    tries: Count = 8  # draws per block
    more: tuple["MaskConfig", ...] = ()  # further masks of the same image, which share the teacher's pass (SALT)


class EncoderConfig(Section):
    """The student: any plain timm ViT."""

    arch: Name = "vit_base_patch16_224"
    image_size: Count = 224  # pixels, a multiple of the patch size
    args: Annotated[
        dict[str, Any], AfterValidator(_finite)
    ] = {}  # further keyword arguments of the timm model, such as depth


class PredictorConfig(Section):
    """The narrow transformer from context tokens to latents."""

    depth: Count = 12
    width: Count = 384
    num_heads: Count = 12
    mode: Literal["joint", "per_block"] = "joint"  # all targets in one pass; each block by itself (I-JEPA)

    @model_validator(mode="after")
    def _width_divides(self) -> "PredictorConfig":
        if self.width % self.num_heads or self.width % _POSITION_PARTS:
            raise ValueError(
                f"width is {self.width}; it must be a multiple of num_heads ({self.num_heads}) and of {_POSITION_PARTS}"
            )
        return self


class TeacherConfig(Section):
    """The frozen teacher: a run directory, an encoder folder, a timm name, or `random:` and a timm name."""

    source: Place
    weights: LocalPath | None = None  # for a timm name: a local file; none: timm's own download
    layout: Literal["timm", "mae", "beit", "efficientnet_lite"] = "timm"  # of the keys in that file
    precision: Literal["fp32", "bf16", "int8", "fp8"] = "bf16"  # of its forward pass; int8 and fp8 want a GPU


class TargetConfig(Section):
    """How latents become targets, and how a prediction is scored."""

    layers: Annotated[tuple[int, ...], Field(min_length=1)] = (-1,)  # of the teacher, averaged; -1 is the last
    normalisation: Literal["none", "layernorm", "channel"] = "channel"
    measure_batches: Count = 4  # mean and deviation are measured over the first that many global batches
    loss: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    beta: Positive = 1.0
    momentum: tuple[Share, Share] = (0.996, 1.0)  # objective `ema`: from, to (I-JEPA)


class OptimConfig(Section):
    """AdamW under warm-up and cosine; all of it a function of the step (US-JEPA Tab. 4)."""

    batch: Count = 128  # samples per step over all ranks
    steps: Count
    warmup_steps: CountFrom0 = 0
    start_lr: PositiveOr0 = 5e-6
    lr: Positive = 5e-5
    final_lr: PositiveOr0 = 5e-7
    weight_decay: tuple[PositiveOr0, PositiveOr0] = (0.04, 0.4)  # from, to
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.95)
    clip: PositiveOr0 = 1.0  # gradient norm; 0 is off
    precision: Literal["fp32", "bf16"] = "bf16"
    average: ShareBelow1 = 0.0  # decay of a running average of the student, which is then released; 0: none

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "OptimConfig":
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} and steps is {self.steps}; the warm-up must not be longer than "
                "the run"
            )
        return self


class RunConfig(Section):
    """Where and how; must not change results."""

    dir: LocalPath
    micro_batch: Count = 64  # samples per rank and forward
    zero_stage: Literal[0, 1, 2, 3] = 1
    compile: bool = False  # torch.compile; the first step takes a minute
    checkpoint_activations: bool = False  # less memory, a third more work
    num_workers: CountFrom0 = 2  # decoding processes per rank
    cache_gib: Positive = 50  # of remote shards on the disk of a node, in $US_JEPA_CACHE
    log_every: Count = 10  # steps
    save_every: Count = 500  # steps; validation comes with it
    keep: Count = 2  # last checkpoints; the best one stays, too
    copy_to: Place | None = None  # a folder or URL (s3://...) that gets copies of the checkpoints, below the run's name
    probe: Place | None = None  # a labelled shard directory that a small linear probe scores at every validation
    experiment: Name = "us-jepa"  # MLflow
    tracking_uri: Place | None = None  # MLflow; none: MLFLOW_TRACKING_URI, else sqlite in ./build


class PretrainConfig(Section):
    """Everything that `deepspeed train/pretrain.py --config FILE` reads."""

    objective: Literal["salt", "pixel", "ema", "distill"] = "salt"
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
        if (self.objective in ("salt", "distill")) != (self.teacher is not None):
            raise ValueError(
                f"objective is {self.objective} and teacher is {self.teacher}; "
                "salt and distill need a teacher, pixel and ema take none"
            )
        return self

    @model_validator(mode="after")
    def _one_flip_per_data_set(self) -> "PretrainConfig":
        for name in ("horizontal_flip", "vertical_flip"):
            given = getattr(self.augment, name)
            if len(given) not in (1, len(self.data.shards)):
                raise ValueError(
                    f"augment.{name} has {len(given)} values for {len(self.data.shards)} data sets; "
                    "give one for all, or one for each"
                )
        return self
