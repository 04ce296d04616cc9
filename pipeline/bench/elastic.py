"""A run that is killed and goes on with other numbers of ranks, beside one that is left alone: `make elastic`.

Needs `make demo`. Every step's metrics say which keys stood at which positions of the global batch (`data/keys_hash`);
both runs must say the same, and the same loss.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from sharding.recording import InputError

_ROOT = Path(__file__).parent.parent.parent
_WORLDS = (2, 1, 4)
_STEPS, _SAVE_EVERY = 12, 4
_CLOSE = 1e-4  # of losses: sums in another order


def main() -> None:
    """Run both and compare; exit code 1 when they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("build/demo"))
    parser.add_argument("--out", type=Path, default=Path("build/elastic"))
    args = parser.parse_args()
    if not (args.demo / "teacher" / "encoder").exists():
        raise InputError(f"{args.demo}: no teacher; run `make demo` first")
    shutil.rmtree(args.out, ignore_errors=True)
    alone, broken = args.out / "alone", args.out / "broken"
    _run(args.demo, alone, 2)
    for number, world in enumerate(_WORLDS):
        is_last = number == len(_WORLDS) - 1
        _run(args.demo, broken, world, kill_at=0 if is_last else _SAVE_EVERY * (number + 1))
    wanted, found = _journal(alone), _journal(broken)
    print("step  keys_hash alone   broken          loss alone  broken")
    for step in sorted(wanted):
        rows = [(int(run[step]["data/keys_hash"]), run[step]["train/loss"]) for run in (wanted, found)]
        print(f"{step:4}  {rows[0][0]:<16} {rows[1][0]:<16} {rows[0][1]:.6f}  {rows[1][1]:.6f}")
    same = all(wanted[step]["data/keys_hash"] == found[step]["data/keys_hash"] for step in wanted)
    far = max(abs(wanted[step]["train/loss"] - found[step]["train/loss"]) for step in wanted)
    print(f"ranks {' -> '.join(map(str, _WORLDS))}: keys {'equal' if same else 'DIFFER'}, losses differ by {far:.1e}")
    sys.exit(0 if same and far < _CLOSE and wanted.keys() == found.keys() else 1)


def _run(demo: Path, run_dir: Path, world: int, kill_at: int = 0) -> None:
    """Run to the end, or until the checkpoint of a step is there."""
    launcher = Path(sys.executable).parent / "deepspeed"
    command = [
        str(launcher), "--num_gpus", str(world), str(_ROOT / "train" / "pretrain.py"),
        "--config", str(_ROOT / "train" / "configs" / "demo.yaml"), f"data.shards=[{demo / 'shards'}]",
        f"teacher.source={demo / 'teacher'}", f"run.dir={run_dir}", f"optim.steps={_STEPS}",
        f"run.save_every={_SAVE_EVERY}", "run.log_every=1", "run.micro_batch=16",
    ]  # fmt: skip
    print(f"{run_dir.name}: {world} ranks" + (f", killed after the checkpoint of step {kill_at}" if kill_at else ""))
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoint = run_dir / "checkpoints" / f"step-{kill_at:08d}.safetensors"
    while process.poll() is None:
        if kill_at and checkpoint.exists():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.02)
    if process.returncode != 0 or kill_at:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode} before it was killed; run it by hand")


def _journal(run_dir: Path) -> dict[int, dict[str, float]]:
    metrics: dict[int, dict[str, float]] = {}
    for line in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        metrics.setdefault(line["step"], {}).update(line["metrics"])  # training and validation are lines of their own
    return metrics


if __name__ == "__main__":
    main()
