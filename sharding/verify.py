"""Read finished shards again and say the first thing that is wrong, by name."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from sharding.manifest import ShardInfo, load_manifest, sha256_of
from sharding.recording import InputError
from sharding.sample import KEY, decode


def verify(directory: Path) -> Iterator[tuple[ShardInfo, int]]:
    """Check one shard after the other: size, content hash, keys, and that every sample decodes.

    Yields:
        each shard with its number of samples, once it has passed.

    Raises:
        InputError: names the shard, what it has and what the manifest says.

    """
    manifest = load_manifest(directory)
    extra = {path.name for path in directory.glob("*.tar")} - {shard.name for shard in manifest.shards}
    if extra:
        raise InputError(f"{directory}: {sorted(extra)[0]} is not in the manifest; delete it or shard again")
    for shard in manifest.shards:
        _check_bytes(directory / shard.name, shard)
        yield shard, _check_samples(directory / shard.name, shard)


def _check_bytes(path: Path, shard: ShardInfo) -> None:
    if not path.is_file():
        raise InputError(f"{path}: missing; run `us-jepa shards` again")
    found = sha256_of(path)
    if found != shard.sha256:
        raise InputError(
            f"{path}: sha256 is {found[:12]}..., the manifest says {shard.sha256[:12]}...; "
            "the file was changed after it was written: restore it, or delete the folder and shard again"
        )


def _check_samples(path: Path, shard: ShardInfo) -> int:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            if not KEY.fullmatch(key) or file is None:
                raise InputError(f"{path}: member {member.name!r} is not <key>.<extension> with a key of [a-z0-9_-]")
            samples.setdefault(key, {})[extension] = file.read()
    for key, members in samples.items():
        try:
            decode(key, members)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {error}") from error
    if len(samples) != shard.num_samples:
        raise InputError(f"{path}: {len(samples)} samples, the manifest says {shard.num_samples}")
    return len(samples)
