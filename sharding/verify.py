"""Read finished shards again and say the first thing that is wrong, by name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sharding.cache import ShardCache
from sharding.deidentify import is_allowed
from sharding.forbidden import Forbidden
from sharding.manifest import ShardInfo, load_manifest
from sharding.merge import samples_of
from sharding.recording import InputError
from sharding.sample import KEY, Codec, Meta, Sample, decode, extensions_of
from sharding.shard_set import find_shards
from sharding.store import Store
from sharding.strangers import Checked, check_tar, local
from sharding.text import stored_has_text

_CHUNK = 1 << 24
_META = TypeAdapter(Meta)


def verify(
    directory: Path | str, forbidden: Forbidden | None = None, text: bool = True
) -> Iterator[tuple[ShardInfo, int]]:
    """Check one shard after the other: content hash, keys, allow-list, that every sample decodes and shows no letters.

    Args:
        directory: finished shard directory.
        forbidden: must not occur in any byte of the directory.
        text: look for letters in every frame.

    Yields:
        each shard with its number of samples, once it has passed.

    Raises:
        InputError: names the shard, what it has and what would be right.

    """
    manifest, out = load_manifest(directory), Store(directory)
    extra = set(out.names("", ".tar")) - {shard.name for shard in manifest.shards}
    if extra:
        raise InputError(f"{directory}: {sorted(extra)[0]} is not in the manifest; delete it or shard again")
    for folder, suffix in (("", ".json"), ("", ".html"), ("outcomes", ".jsonl"), ("outcomes", ".json")):
        for name in out.names(folder, suffix):
            _check_words(out, f"{folder}/{name}".lstrip("/"), forbidden)
    for shard in manifest.shards:
        _check_bytes(out, shard)
        _check_words(out, shard.name, forbidden)
        yield shard, _check_samples(out, shard, text, manifest.codec)


def _check_words(out: Store, name: str, forbidden: Forbidden | None) -> None:
    if forbidden is not None and (found := forbidden.find(name, out.read(name))):
        raise InputError(
            f"{out / name}: a forbidden string occurs at byte {found.start} ({found.num_bytes} bytes); "
            f"do not share this directory (line {found.line} of {forbidden.place})"
        )


def _check_bytes(out: Store, shard: ShardInfo) -> None:
    if not out.exists(shard.name):
        raise InputError(f"{out / shard.name}: missing; run `us-jepa shards` again")
    digest = hashlib.sha256()
    with out.open(shard.name) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if found != shard.sha256:
        raise InputError(
            f"{out / shard.name}: sha256 is {found[:12]}..., the manifest says {shard.sha256[:12]}...; "
            "the file was changed after it was written: restore it, or delete the folder and shard again"
        )


def _check_samples(out: Store, shard: ShardInfo, text: bool, codec: Codec) -> int:
    path = out / shard.name
    keys: set[str] = set()
    for members in samples_of(out, shard.name):
        sample = _check_sample(path, members, codec)
        if sample.key in keys:
            raise InputError(f"{path}: key {sample.key!r} occurs twice; readers would lose one of them")
        keys.add(sample.key)
        if text and sample.meta.certificate not in _VOUCHED:
            _check_text(path, sample)
    if len(keys) != shard.num_samples:
        raise InputError(f"{path}: {len(keys)} samples, the manifest says {shard.num_samples}")
    return len(keys)


_VOUCHED = {"public", "as_is"}


def _check_sample(path: str, members: list[tuple[str, bytes]], codec: Codec) -> Sample:
    parts = {name.partition(".")[2]: data for name, data in members}
    key = members[0][0].partition(".")[0]
    if not KEY.fullmatch(key) or "" in parts:
        name = members[0][0]
        raise InputError(f"{path}: member {name!r} is not <key>.<extension> with a key of [a-z0-9_-]")
    try:
        sample = decode(key, parts)
        _META.validate_json(parts["json"], strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]["loc"][0]
        raise InputError(f"{path}: sample {key}: {wrong!r} of its json is not of the type that is allowed") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
    if not is_allowed(sample.meta.manufacturer, sample.meta.body_part):
        raise InputError(f"{path}: sample {key}: manufacturer or body_part of its json is not in the closed tables")
    if unknown := set(parts) - set(extensions_of(codec)):
        known = ", ".join(extensions_of(codec))
        raise InputError(f"{path}: sample {key}: member .{sorted(unknown)[0]} is not one of {known}")
    return sample


def _check_text(path: str, sample: Sample) -> None:
    if stored_has_text(sample.frame, sample.region):
        raise InputError(
            f"{path}: sample {sample.key} seems to show letters inside its region; look at it with `us-jepa preview`"
        )


def verify_strangers(
    place: str, cache: ShardCache, forbidden: Forbidden | None = None
) -> Iterator[tuple[str, Checked]]:
    """Check what can be checked of tars without a manifest: their end, keys, that every sample decodes, words.

    Args:
        place: as find_shards takes it.
        cache: for remote tars.
        forbidden: must not occur in any byte of a tar.

    Yields:
        each tar with what it holds, once it has passed.

    Raises:
        InputError: names the tar, the first sample that is wrong, and why.

    """
    for shard in find_shards(place, cache).shards:
        with local(shard, cache) as path:
            _check_words(Store(path.parent), path.name, forbidden)
            yield shard.place, check_tar(path, shard.sha256)
