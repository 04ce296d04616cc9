"""us-jepa: raw ultrasound in, a frozen encoder with honest numbers out.

us-jepa shards SRC OUT      de-identified tar shards from DICOM, video and images
us-jepa verify OUT          read them again: content hashes, keys, every sample
us-jepa pretrain --config   the same as `deepspeed train/pretrain.py`
us-jepa probe RUN --data    linear probe: random init, teacher, student
us-jepa demo                all of it, on generated and real recordings, in minutes
us-jepa doctor              is this machine ready?
"""

import argparse
import os
import sys
from pathlib import Path

from sharding.recording import InputError


def main() -> None:
    """Run a subcommand; what the user can mend ends in one sentence and exit code 2."""
    parser = _parser()
    args = parser.parse_args()
    try:
        sys.exit(args.command(args))
    except InputError as error:
        print(f"us-jepa {args.name}: {error}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("us-jepa", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    shards = commands.add_parser(
        "shards", help="make shards", description="Every source gets one outcome; see report.html."
    )
    shards.add_argument("source", type=Path, help="folder of DICOM, video and image files, or one file")
    shards.add_argument("out", type=Path, help="shard directory; the same command continues a stopped job")
    shards.add_argument("--dataset", help="name in every sample, [a-z0-9_-]; default: name of OUT")
    shards.add_argument("--max-frames", type=int, default=32, help="frames kept per clip, evenly spaced (32)")
    shards.add_argument("--val-share", type=float, default=0.05, help="share of patients for the val split (0.05)")
    shards.add_argument("--key-file", type=Path, default=_default_key(), help="secret of the pseudonyms (%(default)s)")
    shards.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    shards.add_argument(
        "--public", action="store_true", help="the pixels identify nobody: keep those without certificate"
    )
    shards.set_defaults(command=_shards)
    verify = commands.add_parser("verify", help="check finished shards")
    verify.add_argument("directory", type=Path)
    verify.set_defaults(command=_verify)
    pretrain = commands.add_parser("pretrain", help="train an encoder", description="Starts the deepspeed launcher.")
    pretrain.add_argument("--num-gpus", type=int, default=1, help="processes on this machine (1)")
    pretrain.add_argument("--config", type=Path, required=True, help="see train/configs")
    pretrain.add_argument("overrides", nargs="*", metavar="section.key=value")
    pretrain.set_defaults(command=_pretrain)
    probe = commands.add_parser("probe", help="probe an encoder")
    probe.add_argument("run", type=Path, help="run directory of a finished pretraining")
    probe.add_argument(
        "--data", type=Path, required=True, help="folder with labels.csv (path, label, group) in or above it"
    )
    probe.add_argument("--folds", type=int, default=5, help="folds by group (5)")
    probe.set_defaults(command=_probe)
    demo = commands.add_parser("demo", help="the whole line in minutes")
    demo.add_argument("--out", type=Path, default=Path("build/demo"), help="(%(default)s)")
    demo.set_defaults(command=_demo)
    doctor = commands.add_parser("doctor", help="check this machine and, if given, shard directories")
    doctor.add_argument("shards", type=Path, nargs="*")
    doctor.set_defaults(command=_doctor)
    return parser


def _default_key() -> Path:
    home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"))
    return Path(os.environ.get("US_JEPA_KEY_FILE", home / "us-jepa" / "key"))


# Each command imports what it needs: `us-jepa --help` must not wait for torch.
def _shards(args: argparse.Namespace) -> int:
    from pipeline.shards import make_shards
    from sharding.job import Policy

    name = args.dataset or args.out.resolve().name.lower()
    policy = Policy(name, args.max_frames, args.val_share, args.public)
    make_shards(args.source, args.out, policy, args.key_file, args.workers)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from pipeline.shards import verify_shards

    verify_shards(args.directory)
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    from pipeline.launch import launch

    return launch(args.config, args.overrides, args.num_gpus)


def _probe(args: argparse.Namespace) -> int:
    from eval.probe import ProbeConfig
    from eval.stage import run_probe
    from pipeline.show import print_table

    print_table(run_probe(args.run, args.data, ProbeConfig(folds=args.folds)))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from pipeline.demo import run_demo

    run_demo(args.out)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from pipeline.doctor import examine

    return examine(args.shards)


if __name__ == "__main__":
    main()
