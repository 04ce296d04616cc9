"""The whole line on one page: shards from real and generated recordings, teacher, student, probe, report."""

import os
import shutil
from functools import partial
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

from deploy.export import export_encoder
from eval.comparison import compare, config_of_run
from eval.probe import ProbeConfig
from eval.probe_tables import probe_tables
from eval.report import write_run_report
from pipeline.launch import launch
from pipeline.shards import make_shards, verify_shards
from pipeline.show import print_comparison
from sharding.policy import Job, Policy
from sharding.sources.synthetic_files import write_demo_set
from train.tracking import log_artifacts

_CONFIGS = Path(__file__).parent.parent / "train" / "configs"
_PRETRAIN_PATIENTS, _PROBE_PATIENTS = 36, 36
_NUM_RANKS = 2


def run_demo(out: Path) -> None:
    """Run every stage; what an earlier call finished is not done again.

    Raises:
        RuntimeError: a pretraining failed.

    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _NUM_RANKS)))
    source, labelled = out / "source", out / "labelled"
    write_sources(source, labelled)
    make_shards(Job(str(source), str(out / "shards"), Policy("demo"), out / "key"), os.cpu_count() or 1)
    verify_shards(str(out / "shards"))
    runs = {"teacher": out / "teacher", "student": out / "student"}
    for name, config in (("teacher", "demo-teacher.yaml"), ("student", "demo.yaml")):
        overrides = [f"data.shards=[{out / 'shards'}]", f"run.dir={runs[name]}"]
        overrides += [f"teacher.source={runs['teacher']}"] if name == "student" else []
        if launch(_CONFIGS / config, overrides, _NUM_RANKS) != 0:
            raise RuntimeError(f"pretraining the {name} failed; its own message is above")
    cfg, probe = config_of_run(runs["student"], str(labelled), ProbeConfig()), out / "probe"
    tables = probe_tables(compare(cfg, probe, show=partial(print_comparison, probe)))
    report = out / "report.html"
    write_run_report(runs, tables, report)
    encoder = export_encoder(runs["student"], out / "encoder", tables=tables)
    pages = {"report": report, "probe": out / "probe" / "report.html", "encoder": encoder}
    for name, place in (pages | {"shards": out / "shards" / "report.html"}).items():
        print(f"{name + ':':<8} {place}")
    log_artifacts(runs["student"], {"report.html": report, "export": encoder})
    print("next:    make review   (runs, curves, report)   |   make shards SRC=your/scans OUT=build/mine")


def write_sources(source: Path, labelled: Path) -> None:
    """Write what is sharded (real DICOM of the pydicom wheel, generated) and, of other patients, what is probed."""
    if (labelled / "labels.csv").exists():
        return
    print("generate recordings")
    (source / "real").mkdir(parents=True, exist_ok=True)
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        if _is_ultrasound(path):
            shutil.copy(path, source / "real" / path.name)
    write_demo_set(source / "generated", _PRETRAIN_PATIENTS, seed=1)
    (source / "generated" / "labels.csv").unlink()  # pretraining knows no labels
    write_demo_set(labelled, _PROBE_PATIENTS, seed=2)


def _is_ultrasound(path: Path) -> bool:
    try:
        return bool(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality") == "US")
    except InvalidDicomError:
        return False
