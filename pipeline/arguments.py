"""What each command of us-jepa takes. Nothing heavy is imported here: `us-jepa --help` must not wait for torch."""

import argparse
import os
from pathlib import Path
from typing import TypeAlias

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def make_parser(description: str) -> argparse.ArgumentParser:
    """Parser of `us-jepa COMMAND ...`; the command's name is in `name`."""
    parser = argparse.ArgumentParser("us-jepa", description=description, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    _add_shards(commands)
    _add_checks(commands)
    _add_pretrain(commands)
    _add_probe(commands)
    _add_export(commands)
    _add_embed(commands)
    _add_serve(commands)
    demo = commands.add_parser("demo", help="the whole line in minutes")
    demo.add_argument("--out", type=Path, default=Path("build/demo"), help="(%(default)s)")
    _add_doctor(commands)
    _add_plan(commands)
    _add_promote(commands)
    return parser


def _add_checks(commands: _Commands) -> None:
    verify = commands.add_parser("verify", help="check finished shards: hashes, keys, fields, every sample, letters")
    verify.add_argument("directory", help="shard directory or URL")
    verify.add_argument("--forbid", type=Path, help="file with one name or number per line; none may occur in any byte")
    preview = commands.add_parser("preview", help="contact sheet of finished shards")
    preview.add_argument("directory", help="shard directory or URL")
    preview.add_argument("--to", type=Path, default=Path("preview.png"), help="PNG to write (%(default)s)")
    preview.add_argument("--frames", type=int, default=96, help="how many (%(default)s)")


def _add_doctor(commands: _Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check this machine, what is around it and, if given, data sets: does the stream keep up?",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    doctor.add_argument("shards", nargs="*", help="data sets, as data.shards takes them: folders, tars, URLs")
    doctor.add_argument("--ranks", type=int, default=1, help="GPUs of the run")
    doctor.add_argument("--workers", type=int, default=2, help="decoding processes per GPU, run.num_workers")
    doctor.add_argument("--need", type=float, default=500, metavar="RATE", help="frames/s that one GPU takes")
    doctor.add_argument("--cap", type=int, default=0, help="data.cap; 0: none")
    doctor.add_argument(
        "--config", type=Path, help="of the pretraining: does its teacher load, does its MLflow answer?"
    )
    doctor.add_argument("--folder", type=Path, default=Path("build"), help="for shards and runs: how fast is it?")
    doctor.add_argument("--key-file", type=Path, default=_default_key(), help="secret of the pseudonyms")


def _add_pretrain(commands: _Commands) -> None:
    pretrain = commands.add_parser(
        "pretrain",
        help="train an encoder",
        description="Starts the deepspeed launcher. The same command continues a run that was stopped.",
        epilog="""With --recipe salt, the config describes the whole budget, as if it were one run: optim.steps and
        optim.warmup_steps are split over the stages. It names no teacher, since the recipe makes one: leave the section
        teacher out, or keep teacher.precision alone; for a config with a teacher, add teacher=null. Stages lie in
        run.dir: teacher (objective pixel, loss mse), student, student-2, ... A finished stage is not run again.""",
    )
    add = pretrain.add_argument
    add("--config", type=Path, required=True, help="see train/configs")
    add("--num-gpus", type=int, default=1, help="processes on this machine (1)")
    add("--smoke", action="store_true", help="try the config: two steps at reduced size on generated data")
    add("--recipe", choices=("salt",), help="salt: make a teacher of pixels first, then a student of it")
    # 1/6: the best split of SALT's 240,000 steps was 40,000 and 200,000
    add("--teacher-share", type=float, default=1 / 6, metavar="SHARE", help="of optim.steps, with --recipe salt (1/6)")
    add(
        "--student-stages", type=int, default=1, metavar="N",
        help="with --recipe salt; each but the first learns from the student before it (1)",
    )  # fmt: skip
    add("overrides", nargs="*", metavar="section.key=value")


def _add_probe(commands: _Commands) -> None:
    probe = commands.add_parser(
        "probe",
        help="probe encoders",
        description="""Scores frozen encoders on labelled sets, with intervals and paired tests by group (patient).
        Either RUN with --data, or --encoders with --sets. The same command continues what was stopped.""",
        epilog="""Encoders: a run directory or encoder folder, teacher:RUN, init:RUN, a timm name, random:NAME,
        hf:FOLDER, pixels, or a published name; NAME=FILE gives weights. Sets: a folder with labels.csv (path, label,
        group) in or above it, shards with labels, or KEY=FOLDER for a set of the paper, such as busbra=/data/busbra. A
        column split: fitted on train, chosen on val, scored on test; a column value: ridge regression of it, too.""",
    )
    add = probe.add_argument
    add("run", type=Path, nargs="?", help="run directory of a finished pretraining: its student, teacher and start")
    add("--data", metavar="SET", help="labelled set, with RUN")
    add("--encoders", metavar="A,B,...", help="what is compared; pixels and the majority class are always there")
    add("--sets", metavar="X,Y,...", help="what on")
    add("--out", type=Path, help="folder of the results (RUN/probe/SET with RUN; needed without)")
    add(
        "--protocol", default="fair", help="some of fair,paper,knn,attentive; the first is the headline's (%(default)s)"
    )
    add("--pooling", choices=("mean", "cls", "last4"), default="mean", help="of patch features (%(default)s)")
    add("--size", type=int, help="side of the frames in pixels (224; with RUN that of its student)")
    add("--frames", type=int, default=4, help="evenly spaced, of a cine (%(default)s)")
    add("--folds", type=int, default=5, help="by group, where a set has no splits (%(default)s)")
    add("--few-shot", action="store_true", help="also with 1, 5, 10, 50, 100 %% of the training patients")
    add("--robustness", action="store_true", help="also on degraded frames: 18 more passes per encoder and set")
    add("--no-frames", action="store_true", help="no pictures of frames in report.html")


def _add_export(commands: _Commands) -> None:
    export = commands.add_parser("export", help="write an encoder for other people's tools")
    add = export.add_argument
    add("run", type=Path, help="run directory of a finished pretraining")
    add("out", type=Path, help="folder to make; an earlier export there is replaced")
    add(
        "--format", choices=("hf", "timm", "onnx", "torch"), default="hf", dest="to",
        help="hf: transformers and timm. timm: timm alone. onnx and torch (torch.export): with normalisation and "
        "pooling, for any batch size (%(default)s)",
    )  # fmt: skip
    add("--probe", type=Path, metavar="DIR", help="folder of `us-jepa probe` whose table goes into the model card")
    add("--data-licence", default="", metavar="TEXT", help="of the data it was trained on, for the model card")
    add("--mlflow", action="store_true", help="also log the encoder to its MLflow run, for `mlflow models serve`")


def _add_embed(commands: _Commands) -> None:
    embed = commands.add_parser(
        "embed",
        help="a vector per frame and clip, or what is most like a query",
        description="""Writes OUT (a row per frame) and OUT's .clips.parquet (a row per clip). What is no shard
        directory is sharded first, beside OUT: same decoding, region, de-identification and pseudonyms. The same
        command continues what was stopped.""",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = embed.add_argument
    add("encoder", help="run directory, encoder folder, or whatever `us-jepa probe --encoders` takes")
    add("source", help="shard directory; or folder or file of DICOM, video, images")
    add("out", type=Path, help="table to write, *.parquet; with --topk the one to search")
    add("--topk", type=int, default=0, metavar="N", help="search OUT for the N frames most like SOURCE; 0: write OUT")
    add("--workers", type=int, default=1, help="processes, which share the cores")
    add("--max-frames", type=int, default=32, help="frames per clip, evenly spaced")
    add("--pixels", choices=("certified", "public", "as_is"), default="certified", help="see `us-jepa shards --help`")
    add("--key-file", type=Path, default=_default_key(), help="secret of the pseudonyms")


def _add_serve(commands: _Commands) -> None:
    serve = commands.add_parser(
        "serve",
        help="vectors of uploads over HTTP, and a page to try it",
        description="""Answers POST /embed (one DICOM, image or video) with vectors; same decoding, region and
        de-identification as shards. Nothing of an upload is written to a disk or logged.""",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = serve.add_argument
    add("encoder", help="run directory, encoder folder, or whatever `us-jepa probe --encoders` takes")
    add("--host", default="127.0.0.1", help="address to listen on; any that others reach wants a token")
    add("--port", type=int, default=8600, help="0: any that is free")
    add("--token-file", type=Path, help="secret that clients bring, made if it does not exist; None: none on loopback")
    add("--table", type=Path, help="*.parquet of `us-jepa embed` by the same encoder, to find what is most like it")
    add("--pixels", choices=("certified", "public", "as_is"), default="certified", help="see `us-jepa shards --help`")
    add("--profiles", type=Path, help="YAML of device profiles that your site has signed")
    add("--max-frames", type=int, default=32, help="frames of an upload that are embedded, evenly spaced")
    add("--max-mib", type=float, default=64, help="size of an upload")
    add("--body-seconds", type=float, default=30, help="in which an upload must arrive")
    add("--seconds", type=float, default=20, help="after which a decoder is killed; it is tried twice")
    add("--memory", type=float, default=4, help="GiB that a decoder may use")
    add("--decoders", type=int, default=min(8, os.cpu_count() or 1), help="uploads decoded at the same time")
    add("--max-batch", type=int, default=32, help="frames in one pass of the encoder")
    add("--max-wait-ms", type=float, default=5, help="that a frame waits for others")
    add("--max-waiting", type=int, default=32, help="uploads in memory at the same time; more are answered with 503")
    add("--tls-cert", type=Path, help="PEM; with --tls-key")
    add("--tls-key", type=Path, help="PEM")


def _add_shards(commands: _Commands) -> None:
    shards = commands.add_parser(
        "shards",
        help="make shards",
        description="Every source gets one outcome; see report.html. The same command continues a stopped job.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = shards.add_argument
    add("source", help="folder of DICOM, video, image, zip and tar files, or one file; a path or s3://...")
    add("out", help="shard directory; a path or s3://...")
    add("--dataset", help="name in every sample, [a-z0-9_-]; None is the name of OUT")
    add("--max-frames", type=int, default=32, help="frames kept per clip, evenly spaced")
    add("--stride", type=int, default=1, help="only every stride-th frame is a candidate")
    add("--val-share", type=float, default=0.05, help="share of patients for the val split")
    add(
        "--pixels",
        choices=("certified", "public", "as_is"),
        default="certified",
        help="certified: refuse what has no certificate. public: you vouch for the pixels, a region is searched all "
        "the same. as_is: you vouch for them, whole frames are kept",
    )
    add(
        "--codec",
        choices=("jpeg", "zstd"),
        default="jpeg",
        help="jpeg: quality 95, anyone can look at it. zstd: lossless, 1.2 times the bytes, decoded faster",
    )
    add("--profiles", type=Path, help="YAML of device profiles that your site has signed; see sharding/profiles.py")
    add("--labels", type=Path, help="csv of path, label, group (the patient); UltraBench folders bring their own")
    add("--key-file", type=Path, default=_default_key(), help="secret of the pseudonyms; the listing lies beside it")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes on this machine")
    add("--seconds", type=float, default=120, help="after which a decoder is killed")
    add("--memory", type=float, default=4, help="GiB that a decoder may use")
    where = shards.add_mutually_exclusive_group()
    where.add_argument("--dask", metavar="ADDRESS", help="run on a Dask cluster, tcp://host:8786; needs shared folders")
    where.add_argument("--unit", metavar="I/N", help="run slice I of N (from 0), for job arrays on one OUT")
    where.add_argument("--dry-run", action="store_true", help="try some sources, write nothing, say how long it takes")


def _add_promote(commands: _Commands) -> None:
    promote = commands.add_parser(
        "promote",
        help="register an encoder in MLflow; into use if it beats what is in use",
        description="""Registers the exported encoder with its probe table and gives it the alias `candidate`; and
        `champion` where it beats the champion in the paired test of a comparison that has both: a significant
        difference of macro F1 on a set at least, and none against it.""",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = promote.add_argument
    add("run", type=Path, help="run directory of a finished pretraining")
    add("--probe", type=Path, metavar="DIR", help="folder of `us-jepa probe`; None is the only one below RUN/probe")
    add("--name", default="us-jepa", dest="model", help="of the registered model")
    add("--force", action="store_true", help="champion whatever the paired test says; a tag says so")
    add("--data-licence", default="", metavar="TEXT", help="of the data it was trained on, for the model card")


def _add_plan(commands: _Commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="what N frames take: shards, bytes, CPU and GPU hours, nodes",
        description="Prints a Markdown table with every formula, and how each rate is known. With --measure it "
        "measures the rates of this machine first, through small real jobs, and writes them to the file of --rates.",
    )
    add = plan.add_argument
    add(
        "--frames",
        type=float,
        nargs="+",
        default=[1e5, 1e7, 1e9],
        help="accepted frames, such as 1e9; several give several columns",
    )
    add("--gpus", type=int, nargs="+", default=[8], help="for all sizes, or one for each (8); 0: train on processors")
    add("--model", default="vit_base", metavar="NAME", help="config of train/configs, or a YAML file (vit_base)")
    add("--epochs", type=float, default=100, help="passes over the frames (100, as the paper)")
    add("--gpus-per-node", type=int, default=8, help="(8)")
    add("--cores-per-node", type=int, help="that shard and decode (96; with --gpus 0 those of this machine)")
    add("--rates", type=Path, metavar="FILE", help="measured rates; none: those of a cloud machine with 2 cores")
    add("--measure", action="store_true", help="measure this machine and write --rates FILE")
    add("--source", type=Path, help="with --measure: some hundred of your own scans; none: generated cines")
    add("--folder", type=Path, default=Path("build/plan"), help="with --measure: where to work (build/plan)")


def _default_key() -> Path:
    home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"))
    return Path(os.environ.get("US_JEPA_KEY_FILE", home / "us-jepa" / "key"))
