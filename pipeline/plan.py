"""`us-jepa plan`: what N frames take, from measured rates, with every formula beside its result.

The same functions are what `make plan-check` compares with a job that really ran.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipeline.rates import PEAK, PROCESSOR, UTILISATION, Rate, Rates, three_digits
from sharding.plan import num_units
from sharding.policy import Policy
from sharding.recording import InputError
from train.config import PretrainConfig
from train.flops import Costs, costs_of, step_flops_of
from train.objective import shape_of
from train.smoke import teacher_arch
from train.teacher import random_teacher

_HOUR = 3600
_BYTES_PER_WEIGHT = 12  # of a checkpoint: fp32 weight and two moments
_FEW_IMAGES = 32  # of a step on one GPU; fewer leave it idle
_POLICY = Policy("plan")


@dataclass(frozen=True)
class Size:
    """What is planned.

    Attributes:
        frames: accepted ones.
        gpus: 0 trains on the cores of one machine.
        epochs: passes over the training frames (US-JEPA section 4.3: 100).
        gpus_per_node, cores_per_node: of the machines.

    """

    frames: float
    gpus: int = 1
    epochs: float = 100
    gpus_per_node: int = 8
    cores_per_node: int = 96

    def __post_init__(self) -> None:
        for name in ("frames", "epochs", "gpus_per_node", "cores_per_node"):
            if not getattr(self, name) > 0:
                raise InputError(f"plan: {name} is {getattr(self, name)}; it must be above 0")
        if self.gpus < 0:
            raise InputError(f"plan: gpus is {self.gpus}; give 0 to train on a processor, or more")

    @property
    def nodes(self) -> int:
        """Machines."""
        return max(1, math.ceil(self.gpus / self.gpus_per_node))

    @property
    def devices(self) -> int:
        """What trains: GPUs, or the cores of one machine."""
        return self.gpus or self.cores_per_node


@dataclass(frozen=True)
class Model:
    """A config, and what its step costs.

    Attributes:
        name: stem of its file.
        cfg: the config.
        costs: of student, predictor and teacher.
        step_flops: of a step, per image.

    """

    name: str
    cfg: PretrainConfig
    costs: Costs
    step_flops: int

    def forward_share(self) -> float:
        """What validating an image costs, over training on it."""
        return sum(cost.flops for cost in self.costs.values() if cost is not None) / self.step_flops

    def checkpoint_bytes(self) -> int:
        """Of one checkpoint."""
        trained = [cost for part, cost in self.costs.items() if cost is not None and part != "teacher"]
        return _BYTES_PER_WEIGHT * sum(cost.params for cost in trained)


@dataclass(frozen=True)
class Quantity:
    """One number of a plan.

    Attributes:
        name: in words.
        value: in SI units, seconds, bytes or a plain number.
        shown: with its unit.
        formula: how it came about.

    """

    name: str
    value: float
    shown: str
    formula: str


def model_of(name: str, cfg: PretrainConfig) -> Model:
    """Count what the steps of a config cost; a teacher that is a folder counts as the student's kind."""
    shape = shape_of(cfg)
    teacher = None if cfg.teacher is None else random_teacher(teacher_arch(cfg), shape.grid)
    width = shape.patch**2 if cfg.objective == "pixel" else (teacher or shape).width
    return Model(name, cfg, costs_of(cfg, width, teacher), step_flops_of(cfg, width, teacher))


def train_rate(rates: Rates, model: Model, gpus: int) -> tuple[Rate, float]:
    """Images per second of one GPU or core, and seconds before the first step and after the last.

    Raises:
        InputError: training on a processor that was not measured.

    """
    measured = [key for key in rates.train if key.startswith(f"{model.name} on ")]
    keys = [key for key in measured if (key.rpartition(" on ")[2] == PROCESSOR) == (gpus == 0)]
    if keys:
        return rates.train[keys[0]], rates.train_start[keys[0]].value
    if gpus == 0:
        known = ", ".join(rates.train) or "none"
        raise InputError(
            f"plan: {model.name} was not measured on a processor (measured: {known}); run `us-jepa plan --measure "
            f"--model {model.name} --rates FILE` on it first, or plan for GPUs"
        )
    value = PEAK.value * 1e12 * UTILISATION.value / model.step_flops
    source = f"{PEAK.value:g} TFLOP/s x {UTILISATION.value:g} / {model.step_flops / 1e9:.1f} GFLOP per image"
    return Rate(value=value, unit="images/s per GPU", source=source, is_measured=False), 0.0


def plan(size: Size, rates: Rates, model: Model) -> list[Quantity]:
    """Everything that N frames take, in the order of the stages.

    Raises:
        InputError: as train_rate().

    """
    return [*_of_sharding(size, rates), *_of_training(size, rates, model)]


def _of_sharding(size: Size, rates: Rates) -> list[Quantity]:
    frames, cores = size.frames, size.nodes * size.cores_per_node
    sources, source_bytes = frames / rates.frames_per_source.value, frames * rates.source_bytes.value
    units, shard_bytes = num_units(math.ceil(sources), math.ceil(source_bytes)), frames * rates.shard_bytes.value
    shards = round(sum(_tars(part, units, sources, shard_bytes) for part in (1 - _POLICY.val_share, _POLICY.val_share)))
    core_seconds = rates.shard_start.value + frames / rates.shard.value
    seconds = rates.shard_start.value + frames / rates.shard.value / min(cores, units)
    return [
        Quantity("sources", sources, f"{sources:,.0f}", "frames / frames per source"),
        Quantity("bytes of sources", source_bytes, _bytes(source_bytes), "frames x bytes of source per frame"),
        Quantity("bytes of shards", shard_bytes, _bytes(shard_bytes), "frames x bytes of shard per frame"),
        Quantity(
            "shards", shards, f"{shards:,}",
            "units x (train + val tars); a unit is 1 GiB of sources, a tar at most 256 MiB",
        ),
        Quantity("CPU hours, sharding", core_seconds, _hours(core_seconds), "start + frames / rate per core"),
        Quantity("sharding takes", seconds, _duration(seconds), "start + the rest / min(cores, units)"),
    ]  # fmt: skip


def _tars(share: float, units: int, sources: float, shard_bytes: float) -> float:
    """Expected tars of a split: a unit of few patients may have none in val (here every source is a patient)."""
    with_any: float = units * (1 - (1 - share) ** (sources / units))
    return with_any * math.ceil(share * shard_bytes / units / _POLICY.shard_bytes)


def _of_training(size: Size, rates: Rates, model: Model) -> list[Quantity]:
    rate, start = train_rate(rates, model, size.gpus)
    per_epoch = size.frames * (1 - _POLICY.val_share)
    images, optim = size.epochs * per_epoch, model.cfg.optim
    steps = math.ceil(images / optim.batch)
    validated = min(model.cfg.data.val_samples, size.frames * _POLICY.val_share)
    validation = math.ceil(steps / model.cfg.run.save_every) * validated * model.forward_share()
    # the start is serial on processors: its CPU time is not that of all cores
    work = (images + validation) / rate.value
    seconds, hours = start + work / size.devices, start * max(1, size.gpus) + work
    device = "GPU" if size.gpus else "CPU"
    per_node = (
        min(size.devices, size.gpus_per_node if size.gpus else size.cores_per_node)
        * rate.value
        * rates.shard_bytes.value
    )
    cores = rate.value / rates.decode.value
    return [
        Quantity("images", images, f"{images:.3g}", f"{size.epochs:g} epochs x frames x {1 - _POLICY.val_share:g}"),
        Quantity("steps", steps, f"{steps:,}", f"images / optim.batch ({optim.batch})"),
        Quantity(
            f"{device} hours, training", hours, _hours(hours),
            "start + (images + saves x val_samples x forward / step) / rate",
        ),
        Quantity("training takes", seconds, _duration(seconds), "start + the rest / devices"),
        Quantity("devices", size.devices, f"{size.devices} on {size.nodes}", "on nodes; GPUs, or cores with --gpus 0"),
        Quantity("reading, per node", per_node, f"{_bytes(per_node)}/s", "rate x devices of a node x bytes per frame"),
        Quantity("decoding, per device", cores, f"{cores:.2g} cores", "rate / frames decoded per core"),
        Quantity(
            "a checkpoint", model.checkpoint_bytes(), _bytes(model.checkpoint_bytes()),
            f"12 bytes x weights; the last {model.cfg.run.keep} and the best are kept",
        ),
    ]  # fmt: skip


def drivers(model: Model, sizes: Iterable[Size]) -> list[str]:
    """What the hours are made of and what would change them, and what does not fit."""
    parts = {part: cost.flops * (1 if part == "teacher" else 3) for part, cost in model.costs.items() if cost}
    total = sum(parts.values())
    said = ", ".join(f"{part} {flops / total:.0%}" for part, flops in parts.items())
    lines = [f"{model.step_flops / 1e9:.1f} GFLOP per image: {said}. Hours grow with epochs and frames alike."]
    if "teacher" in parts:
        lines.append("A smaller teacher is the cheapest speed there is; `data.cap` bounds an epoch of a large set.")
    for size in sizes:
        batch = model.cfg.optim.batch / size.devices
        if size.gpus and batch < _FEW_IMAGES:
            lines.append(
                f"optim.batch {model.cfg.optim.batch} on {size.gpus} GPUs is {batch:g} images each, which leaves them "
                f"idle: the rate holds from {_FEW_IMAGES * size.gpus} on, with a learning rate to match."
            )
    return lines


def table(sizes: list[Size], rates: Rates, model: Model) -> str:
    """A Markdown table, a column for each size."""
    columns = [plan(size, rates, model) for size in sizes]
    header = ["frames", *(f"{size.frames:.0e}".replace("e+0", "e") for size in sizes), "formula"]
    rows = [[same[0].name, *(one.shown for one in same), same[-1].formula] for same in zip(*columns, strict=True)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def known_rates(rates: Rates, model: Model, gpus: int) -> list[str]:
    """The rates that a plan uses, each with how it is known."""
    named = {
        "sharding": rates.shard, "start of a job": rates.shard_start, "frames per source": rates.frames_per_source,
        "source": rates.source_bytes, "shard": rates.shard_bytes, "decoding": rates.decode,
        f"training {model.name}": train_rate(rates, model, gpus)[0],
    }  # fmt: skip
    if gpus and not named[f"training {model.name}"].is_measured:
        named |= {"peak": PEAK, "utilisation": UTILISATION}
    return [f"{name}: {rate}" for name, rate in named.items()]


def device_name() -> str:
    """What would train here."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else PROCESSOR


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5:  # noqa: PLR2004 - SI, as rounded
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} PB"


def _hours(seconds: float) -> str:
    return f"{three_digits(seconds / _HOUR)} h"


def _duration(seconds: float) -> str:
    for limit, unit in ((120, 1), (2 * _HOUR, 60), (72 * _HOUR, _HOUR)):
        if seconds < limit:
            return f"{seconds / unit:.3g} {({1: 's', 60: 'min'}).get(unit, 'h')}"
    return f"{seconds / _HOUR / 24:.3g} days"
