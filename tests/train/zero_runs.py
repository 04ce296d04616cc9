"""Several runs, one after the other, in the ranks of one launch: starting ranks is what takes the time.

The argument is a JSON file with a list of runs:
config: of pretrain.py.
copy_of: a run directory of four steps that is copied first, as a kill after step 2 would have left it; optional.
still: where to write a checkpoint of what was resumed, before any step; pretrain.py is not run then; optional.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from torch import distributed

from tests.train.tiny import STEPS
from train.checkpoint import CheckpointStore, latest_checkpoint
from train.config_file import load_config
from train.data import find_sets
from train.engine import start_distributed
from train.job import begin, build_job
from train.run import main


def interrupted_copy(whole: Path, run_dir: Path) -> None:
    """Copy a run without its last checkpoint and encoder; as a run of its own for MLflow."""
    shutil.copytree(whole, run_dir, ignore=shutil.ignore_patterns(f"step-{STEPS:08d}.*", "encoder", "run.json"))


def resume_and_save(config: Path, out: Path) -> None:
    """What a resumed rank has before its first step."""
    cfg = load_config(config, [])
    checkpoint = latest_checkpoint(cfg.run.dir)
    assert checkpoint is not None
    job = build_job(cfg, find_sets(cfg), checkpoint, (distributed.get_rank(), distributed.get_world_size()))
    begin(job, checkpoint)
    CheckpointStore(out, keep=1).save(job.engine, checkpoint.step, job.state())


def run_all(runs: list[dict[str, Any]]) -> None:
    """Each ends with the process group that all share."""
    start_distributed()
    end, distributed.destroy_process_group = distributed.destroy_process_group, lambda: None
    for run in runs:
        config = Path(run["config"])
        if "copy_of" in run:
            if distributed.get_rank() == 0:
                interrupted_copy(Path(run["copy_of"]), load_config(config, []).run.dir)
            distributed.barrier()
        if "still" in run:
            resume_and_save(config, Path(run["still"]))
        else:
            main(load_config(config, []))
    end()


if __name__ == "__main__":
    run_all(json.loads(Path(next(word for word in sys.argv[1:] if not word.startswith("--"))).read_text()))
