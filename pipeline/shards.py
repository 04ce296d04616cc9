"""`us-jepa shards` and `verify`: the job with a bar, and what became of every source."""

from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from sharding.deidentify import load_key
from sharding.job import Policy, plan, run
from sharding.manifest import Manifest, load_manifest
from sharding.recording import InputError
from sharding.report import write_report
from sharding.verify import verify


def make_shards(source: Path, out: Path, policy: Policy, key_file: Path, num_workers: int) -> Manifest:
    """Plan, run and report a sharding job.

    Raises:
        InputError: nothing to read, nothing accepted, or `out` belongs to another job.

    """
    key = load_key(key_file)
    units = plan(source, key)
    num_sources = sum(len(unit.sources) for unit in units)
    finished = run(units, out, policy, key, num_workers)
    for _ in track(finished, total=len(units), description=f"shard {num_sources} sources"):
        pass
    manifest = load_manifest(out)
    report = write_report(out)
    table = Table("outcome", "sources", title=f"{num_sources} sources")
    for name, count in manifest.outcomes.items():
        table.add_row(name, str(count))
    Console().print(table)
    if not manifest.num_samples():
        reasons = ", ".join(f"{name}: {count}" for name, count in manifest.outcomes.items())
        raise InputError(f"source {source}: none of its {num_sources} files was accepted ({reasons}); see {report}")
    print(f"{manifest.num_samples()} frames in {len(manifest.shards)} shards: {out}\nlook at {report}")
    print(f"key: {key_file} (keep it; the same key gives the same pseudonyms)\nnext: us-jepa verify {out}")
    return manifest


def verify_shards(directory: Path) -> None:
    """Check all shards of a directory.

    Raises:
        InputError: names the shard that is not what the manifest says.

    """
    total = len(load_manifest(directory).shards)
    checked = list(track(verify(directory), total=total, description="verify"))
    print(f"{directory}: {sum(count for _, count in checked)} samples in {len(checked)} shards are whole")
