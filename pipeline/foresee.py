"""`us-jepa plan`: the words of the command line to a printed plan."""

import os
from dataclasses import dataclass
from pathlib import Path

import train
from pipeline.measure import measure
from pipeline.plan import Size, drivers, known_rates, model_of, table
from pipeline.rates import SHIPPED, load_rates
from sharding.recording import InputError
from train.config_file import load_config

_CONFIGS = Path(str(train.__file__)).parent / "configs"
_CORES = 96  # of a node with 8 GPUs
_SAMPLE = 32  # cines that are generated to measure with


@dataclass(frozen=True)
class Asked:
    """The words of `us-jepa plan`; see its --help."""

    frames: list[float]
    gpus: list[int]
    model: str
    epochs: float
    gpus_per_node: int
    cores_per_node: int | None
    rates: Path | None
    measure: bool
    source: Path | None
    folder: Path


def print_plan(asked: Asked) -> None:
    """Measure where that is asked, then print table, rates and what drives the cost.

    Raises:
        InputError: no such config or rates, sizes that make no sense, or a measuring job that failed.

    """
    sizes = sizes_of(asked)
    config = config_file(asked.model)
    cfg = load_config(config, [])
    if asked.measure:
        if asked.rates is None:
            raise InputError("plan --measure: say where the rates go, with --rates FILE")
        measure(cfg, config, asked.folder, asked.source, _SAMPLE).save(asked.rates)
    rates, model = load_rates(asked.rates or SHIPPED), model_of(config.stem, cfg)
    print(f"{model.name}, {asked.epochs:g} epochs, GPUs: {', '.join(str(size.gpus) for size in sizes)}\n")
    print(table(sizes, rates, model))
    print(f"\nRates ({rates.machine}; {rates.date}):", *known_rates(rates, model, sizes[-1].gpus), sep="\n- ")
    print("\nWhat drives the cost:", *drivers(model, sizes), sep="\n- ")


def sizes_of(asked: Asked) -> list[Size]:
    """One size per number of frames.

    Raises:
        InputError: another number of --gpus than of --frames.

    """
    if len(asked.gpus) not in (1, len(asked.frames)):
        raise InputError(f"--gpus: {len(asked.gpus)} numbers for {len(asked.frames)} --frames; give one, or as many")
    gpus = asked.gpus if len(asked.gpus) > 1 else asked.gpus * len(asked.frames)
    here = len(os.sched_getaffinity(0))
    return [
        Size(frames, number, asked.epochs, asked.gpus_per_node, asked.cores_per_node or (_CORES if number else here))
        for frames, number in zip(asked.frames, gpus, strict=True)
    ]


def config_file(name: str) -> Path:
    """A config by its name in train/configs, or by its path.

    Raises:
        InputError: there is none.

    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _CONFIGS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in _CONFIGS.glob("*.yaml")))
        raise InputError(f"--model {name}: no such config; give a YAML file, or one of {known}")
    return path
