"""us-jepa: raw ultrasound in, a frozen encoder with honest numbers out.

us-jepa shards SRC OUT      de-identified tar shards from DICOM, video and images
us-jepa verify OUT          read them again: hashes, keys, every sample, letters, names you forbid
us-jepa preview OUT         contact sheet
us-jepa pretrain --config   the same as `deepspeed train/pretrain.py`
us-jepa probe RUN --data    linear probe: random init, teacher, student
us-jepa probe --encoders    any encoders on any labelled sets, compared in pairs
us-jepa export RUN OUT      for timm, transformers, onnxruntime, torch.export; with a model card
us-jepa promote RUN         into MLflow's model registry; champion if it beats the champion
us-jepa embed RUN SRC OUT   a vector per frame and clip, as Parquet; or what is most like a query
us-jepa serve RUN           vectors of uploads over HTTP, and a page to try it
us-jepa demo                all of it, on generated and real recordings, in minutes
us-jepa doctor [SHARDS]     is this machine ready, and does the stream keep up?
us-jepa plan --frames 1e9   shards, bytes, CPU and GPU hours, nodes, with every formula
"""

import argparse
import importlib.util
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.arguments import make_parser
from sharding.names import print_any_name
from sharding.recording import InputError

if TYPE_CHECKING:
    from eval.comparison import ComparisonConfig
    from sharding.policy import Job


def main() -> None:
    """Run a subcommand; what the user can mend ends in one sentence and exit code 2."""
    print_any_name()
    args = make_parser(__doc__).parse_args()
    try:
        sys.exit(_COMMANDS[args.name](args))
    except InputError as error:
        print(f"us-jepa {args.name}: {error}", file=sys.stderr)
        sys.exit(2)


# Each command imports what it needs: `us-jepa --help` must not wait for torch.
def _shards(args: argparse.Namespace) -> int:
    from pipeline.shards import foretell, make_shards, make_slice

    job = _job(args)
    if args.dry_run:
        foretell(job, args.workers)
    elif args.unit:
        make_slice(job, args.workers, *_slice(args.unit))
    elif args.dask:
        from sharding.cluster import on_dask

        make_shards(job, args.workers, on_dask(args.dask))
    else:
        make_shards(job, args.workers)
    return 0


def _job(args: argparse.Namespace) -> "Job":
    from sharding.policy import Job, Limits, Policy
    from sharding.profiles import load_profiles
    from sharding.recording import FrameChoice
    from sharding.sample import KEY

    name = args.dataset or args.out.rstrip("/").rpartition("/")[2].lower()
    if not KEY.fullmatch(name):
        what = f"--dataset {name}" if args.dataset else f"OUT {args.out}: its last part, {name}, names the data set"
        raise InputError(f"{what}; only [a-z0-9_-] is allowed there; give a name of your own with --dataset")
    policy = Policy(
        dataset=name,
        choice=FrameChoice(args.max_frames, args.stride),
        val_share=args.val_share,
        pixels=args.pixels,
        profiles=load_profiles(args.profiles) if args.profiles else (),
        codec=args.codec,
    )
    source, out = (place if "://" in place else str(Path(place).resolve()) for place in (args.source, args.out))
    limits = Limits(args.seconds, int(args.memory * 2**30))
    return Job(source, out, policy, args.key_file, args.labels, limits, args.allow_unmatched)


def _slice(text: str) -> tuple[int, int]:
    place, slash, num_slices = text.partition("/")
    if not (slash and place.isdigit() and num_slices.isdigit()):
        raise InputError(f"--unit {text}: must be I/N, for example 0/4")
    return int(place), int(num_slices)


def _verify(args: argparse.Namespace) -> int:
    from pipeline.shards import verify_shards

    verify_shards(args.directory, args.forbid)
    return 0


def _preview(args: argparse.Namespace) -> int:
    from pipeline.shards import preview

    preview(args.directory, args.to, args.frames)
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    from pipeline.launch import launch
    from pipeline.recipe import run_salt, salt_stages

    if args.recipe == "salt":
        stages = salt_stages(args.config, args.overrides, args.teacher_share, args.student_stages)
        return run_salt(args.config, stages, args.num_gpus, smoke=args.smoke)
    return launch(args.config, args.overrides, args.num_gpus, smoke=args.smoke)


def _probe(args: argparse.Namespace) -> int:
    cfg, out = _comparison(args)
    from eval.comparison import compare
    from pipeline.show import print_comparison

    compare(cfg, out, show=partial(print_comparison, out))
    print("next:    make review   (this comparison and its runs in MLflow)")
    return 0


def _comparison(args: argparse.Namespace) -> "tuple[ComparisonConfig, Path]":
    """Of RUN and --data, or of --encoders, --sets and --out."""
    is_run, is_list = bool(args.run and args.data), bool(args.encoders and args.sets and args.out)
    if is_run == is_list or (is_run and (args.encoders or args.sets)) or (is_list and (args.run or args.data)):
        raise InputError("give RUN and --data SET, or --encoders A,B --sets X,Y --out DIR")
    from eval.comparison import ComparisonConfig, config_of_run, parse_protocols
    from eval.probe import ProbeConfig

    probe, out = ProbeConfig(folds=args.folds), args.out
    if is_run:
        cfg = config_of_run(args.run, args.data, probe)
        out = out or args.run / "probe" / Path(args.data.rpartition("=")[2]).resolve().name
    else:
        cfg = ComparisonConfig(tuple(args.encoders.split(",")), tuple(args.sets.split(",")), probe=probe)
    changed = {"protocols": parse_protocols(args.protocol), "pooling": args.pooling, "robustness": args.robustness}
    changed |= {"few_shot": args.few_shot, "pictures": not args.no_frames, "frames_per_recording": args.frames}
    changed["allow_unmatched"] = args.allow_unmatched
    return replace(cfg, **changed, **({"size": args.size} if args.size else {})), out


def _export(args: argparse.Namespace) -> int:
    from deploy.export import export_encoder
    from eval.probe_tables import load_tables

    tables = load_tables(args.probe) if args.probe else ()
    print(f"export:  {export_encoder(args.run, args.out, args.to, tables, args.data_licence)}")
    if args.mlflow:
        from deploy.scoring import log_to_mlflow

        print(f"serve:   mlflow models serve -m {log_to_mlflow(args.run)} --env-manager local")
    return 0


def _embed(args: argparse.Namespace) -> int:
    from deploy.embed import Embedding
    from pipeline.embed import Raw, print_nearest, write_table

    raw = Raw(args.source, args.max_frames, args.pixels, args.key_file)
    cfg = Embedding(args.encoder, args.workers)
    if args.topk:
        print_nearest(cfg, raw, args.out, args.topk)
    else:
        write_table(cfg, raw, args.out)
    return 0


def _serve(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("fastapi_offline") is None:
        raise InputError("serve: needs the extra `serve`; pip install -e '.[serve]'")
    from pipeline.serve import serve

    serve(args)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from pipeline.demo import run_demo

    run_demo(args.out)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from pipeline.deployment import FRAME_BYTES, Surroundings
    from pipeline.doctor import Load, examine

    load = Load(args.ranks, args.workers, args.need, args.cap)
    around = Surroundings(args.folder, args.config, args.key_file, args.need * args.ranks * FRAME_BYTES, args.ranks)
    return examine(args.shards, load, around)


def _plan(args: argparse.Namespace) -> int:
    from pipeline.foresee import Asked, print_plan

    print_plan(Asked(**{name: value for name, value in vars(args).items() if name != "name"}))
    return 0


def _promote(args: argparse.Namespace) -> int:
    from pipeline.promote import NOT_PROMOTED, Promotion, promote

    promoted = promote(Promotion(args.run, args.probe, args.model, args.data_licence, args.force))
    print(promoted.text)
    return 0 if promoted.is_champion else NOT_PROMOTED


# in the order of --help
_COMMANDS = {
    "shards": _shards,
    "verify": _verify,
    "preview": _preview,
    "pretrain": _pretrain,
    "probe": _probe,
    "export": _export,
    "embed": _embed,
    "serve": _serve,
    "demo": _demo,
    "doctor": _doctor,
    "plan": _plan,
    "promote": _promote,
}


if __name__ == "__main__":
    main()
