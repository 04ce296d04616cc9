"""The probe stage: any encoders on any labelled sets, compared in pairs; killed at any moment it goes on where it was.

OUT/cells/           finished pieces (eval/cells.py), the only source of what follows
OUT/features/        caches of eval/features.py; may be deleted
OUT/results.json     every number; table.md, table.tex, report.html show it
OUT/mlflow_run.json  which run of MLflow is this comparison's
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from eval.cells import Json, canonical
from eval.comparison_cells import Contender, Pieces
from eval.comparison_probes import Protocol
from eval.comparison_sets import majority_cell, set_cell
from eval.datasets import load_set
from eval.encoders import open_encoder, parse_encoder
from eval.features import Pooling
from eval.probe import ProbeConfig
from eval.probe_report import probe_page
from eval.probe_tables import latex, markdown
from eval.results import MAJORITY, METRICS, SetCells, results_of
from sharding.recording import InputError
from sharding.store import Store
from train.comparison_runs import Probed, check_record, record_comparison
from train.config_file import load_config

PIXELS = "pixels"
_FILES = ("results.json", "table.md", "table.tex", "report.html")


@dataclass(frozen=True)
class ComparisonConfig:
    """What is compared.

    Attributes:
        encoders: specs of eval/encoders.py, each with `=FILE` where it needs one; pixels and the majority class are
            always added.
        sets: specs of eval/datasets.py.
        protocols: of eval/comparison_probes.py; the first one is that of pictures and headlines.
        pooling: of patch features.
        size: side of the frames in pixels, before an encoder resizes them.
        frames_per_recording: of a cine.
        probe: settings of the probes.
        few_shot: also probe with shares of the training patients.
        robustness: also probe degraded frames; 18 more passes per encoder and set.
        pictures: put frames on the page.
        allow_unmatched: rows of labels without a file are said, and no error.

    """

    encoders: tuple[str, ...]
    sets: tuple[str, ...]
    protocols: tuple[Protocol, ...] = ("fair",)
    pooling: Pooling = "mean"
    size: int = 224
    frames_per_recording: int = 4
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    few_shot: bool = False
    robustness: bool = False
    pictures: bool = True
    allow_unmatched: bool = False

    def __post_init__(self) -> None:
        for what, given in (("encoder", self.encoders), ("set", self.sets), ("protocol", self.protocols)):
            double = [name for name, count in Counter(given).items() if count > 1]
            if double or not given:
                said = f"{double[0]} is there twice" if double else f"no {what} is named"
                raise InputError(f"probe: {said}; name each {what} once, at least one")


def parse_protocols(text: str) -> tuple[Protocol, ...]:
    """Of a comma-separated list.

    Raises:
        InputError: an unknown one.

    """
    known: dict[str, Protocol] = {name: name for name in get_args(Protocol)}
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise InputError(f"protocol {unknown[0]}: is none of {', '.join(known)}")
    return tuple(known[name] for name in text.split(","))


def config_of_run(run_dir: Path, folder: str, probe: ProbeConfig, frames_per_recording: int = 4) -> ComparisonConfig:
    """A run's student beside its teacher, where it has one, and the student as it started, at the student's size.

    Raises:
        InputError: the run has no encoder yet.

    """
    if not (run_dir / "encoder" / "config.json").is_file():
        raise InputError(f"run {run_dir}: has no encoder/; finish it with `deepspeed train/pretrain.py --config ...`")
    cfg = load_config(run_dir / "config.yaml", [])
    teacher = () if cfg.teacher is None else (f"teacher:{run_dir}",)
    return ComparisonConfig(
        encoders=(f"init:{run_dir}", *teacher, str(run_dir)),
        sets=(folder,),
        size=cfg.student.image_size,
        frames_per_recording=frames_per_recording,
        probe=probe,
    )


def compare(
    cfg: ComparisonConfig, out: Path, *, record: bool = True, show: Callable[[Json], None] = lambda _: None
) -> Json:
    """Probe all encoders on all sets, write what OUT holds, and return the results.

    Args:
        cfg: what is compared.
        out: folder; the same command continues what was stopped there.
        record: in MLflow, too, once all files are written.
        show: is given the results once all files are written, before MLflow, which may refuse them.

    Raises:
        InputError: an encoder or a set that cannot be used, another process at work in OUT, an experiment that was
            deleted in MLflow, or, when all else is done, no answer from it.

    """
    out.mkdir(parents=True, exist_ok=True)
    with Store(out).locked("comparison"):
        contenders = find_contenders(cfg.encoders)
        if record:
            check_record(out, sorted({one.run_dir for one in contenders if one.run_dir is not None}))
        sets = [cells_of_set(cfg, spec, contenders, out) for spec in cfg.sets]
        results = results_of(_settings(cfg), [one.facts() for one in contenders], _matches(contenders), sets)
        _write(out, results, sets)
        show(results)
        if record:
            record_comparison(out, _probed(cfg, contenders, results), [out / name for name in _FILES])
    return results


def find_contenders(specs: tuple[str, ...]) -> list[Contender]:
    """Open every encoder once, so that a wrong name or file is found before the first pass; pixels come first.

    Raises:
        InputError: what open_encoder raises.

    """
    found = [_contender(*parse_encoder(spec)) for spec in dict.fromkeys((PIXELS, *specs))]
    names = Counter(one.name for one in found)
    return [replace(one, name=f"{one.name} ({one.spec})") if names[one.name] > 1 else one for one in found]


def _contender(spec: str, weights: Path | None) -> Contender:
    opened = open_encoder(spec, weights)
    return Contender(spec, weights, opened.name, opened.identity, opened.note, opened.grid, opened.width)


def cells_of_set(cfg: ComparisonConfig, spec: str, contenders: list[Contender], out: Path) -> SetCells:
    """All cells of a set, those that are missing made now; what is wrong with the set is said first."""
    dataset = load_set(spec, cfg.size, cfg.frames_per_recording, cfg.allow_unmatched)
    facts = set_cell(dataset, cfg.probe, out)
    for remark in facts["remarks"]:
        Console().print(f"{dataset.name}: {remark}", markup=False)
    floor = majority_cell(dataset, cfg.probe, out)
    cells = SetCells(facts, {protocol: {MAJORITY: floor} for protocol in cfg.protocols})
    for contender in contenders:
        _add(cells, contender.name, Pieces(contender, dataset, cfg.pooling, cfg.probe, out), cfg)
    return cells


def _add(cells: SetCells, name: str, pieces: Pieces, cfg: ComparisonConfig) -> None:
    for protocol in cfg.protocols:
        cells.probes[protocol][name] = pieces.probe(protocol)
    cells.label_free[name] = pieces.label_free()
    for found, by_encoder in (
        (pieces.segmentation(), cells.segmentation),
        (pieces.regression(), cells.regression),
    ):
        if found:
            by_encoder[name] = found
    if cfg.few_shot:
        cells.few_shot[name] = pieces.few_shot()
    if cfg.robustness:
        cells.robustness[name] = pieces.robustness()
    if cfg.pictures:
        cells.pictures[name] = pieces.pictures(cfg.protocols[0])


def _matches(contenders: list[Contender]) -> list[tuple[str, str]]:
    """Names of students beside their teachers."""
    name_of = {one.spec: one.name for one in contenders}
    return [(name, name_of[f"teacher:{spec}"]) for spec, name in name_of.items() if f"teacher:{spec}" in name_of]


def _settings(cfg: ComparisonConfig) -> Json:
    """What changes numbers, without places."""
    known: dict[str, Any] = asdict(cfg)
    return {key: value for key, value in known.items() if key not in ("encoders", "sets", "allow_unmatched")}


def _write(out: Path, results: Json, sets: list[SetCells]) -> None:
    store = Store(out)
    page = probe_page(results, {cells.facts["name"]: cells.pictures for cells in sets})
    texts = (canonical(results), markdown(results).encode(), latex(results).encode(), page.encode())
    for name, data in zip(_FILES, texts, strict=True):
        store.write(name, data)


def _probed(cfg: ComparisonConfig, contenders: list[Contender], results: Json) -> list[Probed]:
    """What MLflow gets: every encoder on every set, the floor included."""
    floor = Contender(MAJORITY, None, MAJORITY, MAJORITY, "", 0, 0)
    return [_one_probed(cfg, contender, one) for one in results["sets"] for contender in (floor, *contenders)]


def _one_probed(cfg: ComparisonConfig, contender: Contender, one: Json) -> Probed:
    folds = str(cfg.probe.folds) if one["splits"] is None else "published splits"
    params = {"dataset": one["name"], "encoder": contender.name, "pooling": cfg.pooling, "folds": folds}
    params["protocols"] = ",".join(cfg.protocols)
    scores = {f"features/{name}": value for name, value in one["label_free"].get(contender.name, {}).items()}
    for number, (protocol, table) in enumerate(one["tables"].items()):
        row = next(row for row in table["rows"] if row["encoder"] == contender.name)
        scores |= _flat(row["scores"], f"probe-{protocol}" if number else "probe")
    dataset = (one["name"], one["sha256"])
    return Probed(contender.name, contender.identity, contender.run_dir, dataset, params, scores)


def _flat(scores: Json, prefix: str) -> dict[str, float]:
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {
        f"{prefix}/{metric}{end}": scores[metric][key]
        for metric in METRICS
        for key, end in ends.items()
        if key in scores[metric]
    }
