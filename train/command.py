"""The command line of pretraining. It imports neither torch nor DeepSpeed, so that a mistake is said at once."""

import argparse
import os
import sys
from pathlib import Path

from sharding.names import print_any_name
from sharding.recording import InputError
from train.config import PretrainConfig
from train.config_file import load_config

MENDABLE = 2  # exit code of what the user can mend, as of argparse
STOPPED = 75  # exit code of a run that was asked to stop: EX_TEMPFAIL, try again


def start(argv: list[str], description: str) -> int:
    """Run or continue what the command line says; returns the exit code, and prints what a user can mend.

    Args:
        argv: words after the script's name.
        description: for --help.

    """
    print_any_name()
    try:
        cfg, is_smoke = parse(argv, description)
    except InputError as error:
        say(error)
        return MENDABLE
    from train import run  # noqa: PLC0415 - imports torch and DeepSpeed

    return run.start(cfg, is_smoke)


def parse(argv: list[str], description: str) -> tuple[PretrainConfig, bool]:
    """Read the command line: config, and whether only to try it. The environment has what the launcher says.

    Raises:
        InputError: the config, or a setting of it, is wrong.

    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see train/configs and train/config.py")
    parser.add_argument("--smoke", action="store_true", help="two steps at reduced size on generated data")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for example optim.lr=3e-4")
    known = parser.parse_args([word for word in argv if not word.startswith("--local_rank")])
    return load_config(known.config.expanduser(), known.overrides), known.smoke


def say(error: Exception) -> None:
    """Once per node, and not once per rank, what all ranks know; what happened to one rank, there."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or str(error).startswith(f"rank {os.environ['RANK']}:"):
        print(f"pretrain: {error}", file=sys.stderr)
