"""report.html of a shard directory: what a privacy officer looks at and signs."""

import math
from pathlib import Path

import cv2
import numpy as np

from sharding.manifest import Manifest, load_manifest
from sharding.order import Order
from sharding.page import Figure, Section, render_page
from sharding.preprocess import stretch, to_square
from sharding.stream import ShardReader
from sharding.writer import write_atomically

_TILE = 128
_COLUMNS = 8


def contact_sheet(directory: Path, num_frames: int = 48) -> bytes:
    """PNG of frames drawn evenly at random from all shards, as the encoder will see them."""
    manifest = load_manifest(directory)
    order = Order(tuple(shard.num_samples for shard in manifest.shards), seed=0)
    shards, indices = order.at(np.arange(min(num_frames, order.num_samples)))
    tiles = []
    for shard, index in zip(shards, indices, strict=True):
        sample = ShardReader(directory / manifest.shards[shard].name)[int(index)]
        stretched = stretch(sample.frame, sample.region, sample.meta.percentiles)
        tiles.append(to_square(stretched, sample.region, _TILE)[0])
    return grid_png(tiles, _COLUMNS)


def grid_png(tiles: list[np.ndarray], columns: int) -> bytes:
    """PNG of equal tiles, (h, w) or (h, w, 3) BGR uint8, in rows of `columns`."""
    rows = math.ceil(len(tiles) / columns)
    blank = np.zeros_like(tiles[0])
    padded = tiles + [blank] * (rows * columns - len(tiles))
    sheet = np.vstack([np.hstack(padded[row * columns : (row + 1) * columns]) for row in range(rows)])
    data: bytes = cv2.imencode(".png", sheet)[1].tobytes()
    return data


def write_report(directory: Path) -> Path:
    """Write report.html into a finished shard directory and return its path."""
    manifest = load_manifest(directory)
    sections = [_outcomes(manifest), _shards(manifest)]
    if manifest.shards:
        caption = "Frames as stored: cropped to the region, zero outside it, intensities stretched for display."
        sections.append(Section("Accepted frames", figures=(Figure(contact_sheet(directory), caption),)))
    vouched = (
        "The user vouched for pixels without a certificate." if manifest.public else "Uncertified pixels were refused."
    )
    lead = f"{manifest.num_samples()} frames in {len(manifest.shards)} shards. {vouched} Data {manifest.sha256()[:16]}."
    path = directory / "report.html"
    write_atomically(path, render_page(f"Shards of {manifest.dataset}", lead, sections).encode())
    return path


def _outcomes(manifest: Manifest) -> Section:
    rows = tuple((name, str(count)) for name, count in manifest.outcomes.items())
    total = ("all sources", str(sum(manifest.outcomes.values())))
    return Section("What became of every source", table=(("outcome", "sources"), *rows, total))


def _shards(manifest: Manifest) -> Section:
    rows = tuple(
        (shard.name, str(shard.num_samples), f"{shard.num_bytes:,}", shard.sha256[:16]) for shard in manifest.shards
    )
    return Section("Shards", table=(("shard", "frames", "bytes", "sha256"), *rows))
