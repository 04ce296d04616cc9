"""`us-jepa serve`: what the command line says, and who may ask."""

import argparse
import os
from pathlib import Path

from deploy.serve import ServeConfig, is_loopback, run
from deploy.upload import UploadLimits
from sharding.deidentify import load_key
from sharding.policy import Limits
from sharding.profiles import load_profiles
from sharding.recording import FrameChoice, InputError


def serve(args: argparse.Namespace) -> None:
    """Serve until a signal ends it.

    Raises:
        InputError: see ServeConfig and run; one of --tls-cert and --tls-key alone.

    """
    if (args.tls_cert is None) != (args.tls_key is None):
        raise InputError("serve: --tls-cert and --tls-key belong together")
    tls = None if args.tls_cert is None else (args.tls_cert, args.tls_key)
    cfg = ServeConfig(
        encoder=args.encoder,
        token=token_for(args.token_file, args.host),
        table=args.table,
        limits=_limits(args),
        num_decoders=args.decoders,
        max_batch=args.max_batch,
        max_wait=args.max_wait_ms / 1000,
        max_waiting=args.max_waiting,
        encode_seconds=args.encode_seconds,
    )
    if cfg.token and not tls and not is_loopback(args.host):
        print("serve: without --tls-cert, token and uploads are readable on the network; put it behind TLS")
    run(cfg, args.host, args.port, tls)


def token_for(file: Path | None, host: str) -> bytes | None:
    """Content of a file, by default for a host that others reach alone; made at the first start.

    Raises:
        InputError: others can read the file, or it is too short.

    """
    if file is None and is_loopback(host):
        return None
    path = file or _default_file()
    token = load_key(path)
    print(f"token:   {path}, as `Authorization: Bearer TOKEN`", flush=True)
    return token


def _default_file() -> Path:
    """Where the token lies when nobody says."""
    home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"))
    return home / "us-jepa" / "serve-token"


def _limits(args: argparse.Namespace) -> UploadLimits:
    return UploadLimits(
        num_bytes=int(args.max_mib * 2**20),
        body_seconds=args.body_seconds,
        decode=Limits(args.seconds, int(args.memory * 2**30)),
        choice=FrameChoice(args.max_frames),
        pixels=args.pixels,
        profiles=load_profiles(args.profiles) if args.profiles else (),
    )
