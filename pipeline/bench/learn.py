"""Does it learn, on this machine, on real data? `make learn`: minutes of pretraining, and a linear probe.

Small encoders are pretrained without labels on the real frames below SRC, all arms on the same data, masks, stream,
augmentation, schedule and batch. Then a linear probe (biliary atresia or not, AUC, 5 folds by infant, paired bootstrap
over infants) compares them with the same network at random weights, with their teachers and with raw pixels.

Settings may be chosen by `--half development` only; the table is on the infants of the other half, which no choice has
seen. Pretraining sees the frames of both halves, without labels.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from eval.encoders import of_student, of_teacher, open_encoder
from eval.features import pooled
from eval.probe import ProbeConfig
from pipeline.bench.learn_arms import ARMS, EXTERNAL, TEACHER, Arm, Trial, pretrain
from pipeline.bench.learn_data import load_half, make_sources
from pipeline.bench.learn_table import EXTERNAL_ROW, FLOOR, Row, probe_all
from sharding.recording import InputError
from train.config import PretrainConfig
from train.teacher import load_teacher
from train.vit import new_student

_SHARE = 0.2  # of the steps, for stage 1 (SALT: 1/6 to 1/5)
_PIXELS = 32  # side of the raw pixels that are probed


def main() -> None:
    """Make the table; exit code 2 when the data are not there."""
    args = parse()
    sources = make_sources(args.src, args.out, os.cpu_count() or 1)
    trial = Trial(args.out / args.trial, sources, args.share, tuple(args.overrides))
    arms = [arm for arm in ARMS if not args.arms or arm.name in args.arms.split(",")]
    for arm in arms:
        pretrain(trial, arm)
    dataset = load_half(args.src, trial.config(TEACHER).student.image_size, args.half)
    features = {row: compute(dataset.squares) for row, compute in rows(trial, arms).items()}
    table = probe_all(features, dataset, ProbeConfig())
    (trial.folder / f"results-{args.half}.json").write_text(json.dumps(table.facts(), indent=1) + "\n")
    print(f"{args.half} infants: {table.num_infants}, frames: {len(dataset.labels)}")
    print(table.markdown())


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=Path("../shared/data"), help="folder with the sets and labels.csv")
    parser.add_argument("--out", type=Path, default=Path("build/learn"))
    parser.add_argument("--trial", default="table", help="folder of the runs below OUT; other settings need another")
    parser.add_argument("--arms", default="", help=f"some of {','.join(arm.name for arm in ARMS)}")
    parser.add_argument("--share", type=float, default=_SHARE, help="of the steps, for stage 1")
    parser.add_argument(
        "--half", choices=("development", "reported"), default="reported", help="infants that are probed"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of train/configs/learn.yaml")
    return parser.parse_args()


Compute = Callable[[np.ndarray], np.ndarray]


def rows(trial: Trial, arms: list[Arm]) -> dict[Row, Compute]:
    """What is probed, and how its features (n, D) come from squares (n, 2, S, S)."""
    external = Arm("salt-external", "salt", EXTERNAL)
    found: dict[Row, Compute] = {
        Row("raw pixels"): raw_pixels,
        Row(FLOOR): random_init(trial.config(TEACHER)),
        Row(EXTERNAL_ROW): frozen_teacher(trial.config(external)),
    }
    return found | {Row.of(trial, arm): frozen_student(trial.folder / arm.name) for arm in arms}


def raw_pixels(squares: np.ndarray) -> np.ndarray:
    """The frames themselves, at 32 x 32."""
    return np.stack([cv2.resize(s[0], (_PIXELS, _PIXELS), interpolation=cv2.INTER_AREA).ravel() for s in squares])


def random_init(cfg: PretrainConfig) -> Compute:
    """The student as every arm starts with it."""
    torch.manual_seed(cfg.data.seed)
    student = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args)
    return lambda squares: pooled(of_student(student, FLOOR), squares, FLOOR)


def frozen_student(run_dir: Path) -> Compute:
    """The encoder that a run released."""
    return lambda squares: pooled(open_encoder(str(run_dir)), squares, run_dir.name)


def frozen_teacher(cfg: PretrainConfig) -> Compute:
    """The teacher as its students see it: at their size, on their grid."""
    assert cfg.teacher is not None
    name = cfg.teacher.source
    grid = new_student(cfg.student.arch, cfg.student.image_size, cfg.student.args).grid
    teacher = load_teacher(cfg.teacher, grid, cfg.target.layers)[0]
    return lambda squares: pooled(of_teacher(teacher, name), squares, name)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"learn: {error}", file=sys.stderr)
        sys.exit(2)
