"""report.html of a shard directory: what a privacy officer looks at and signs."""

import json
import math
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from sharding.manifest import Manifest, load_manifest
from sharding.merge import MANY_STUDIES, samples_of
from sharding.page import Figure, Section, render_page
from sharding.preprocess import Pixels, stretch, to_square
from sharding.recording import Reason
from sharding.sample import decode
from sharding.store import Store
from sharding.text import figures
from sharding.unit import OUTCOMES

REPORT = "report.html"
TILE = 128
COLUMNS = 8
_MAX_REFUSED = 16  # blurred pictures per reason
_MAX_SHARDS = 200  # rows of the table; the manifest has them all
_CERTIFICATES = {
    "tag": "the scanner declared the region, and one solid sector was found in it",
    "motion": "one solid sector moves, in both halves of the clip",
    "profile": "a device profile that the site has signed",
    "public": "none: the user vouched for the pixels",
    "as_is": "none: the user vouched for the pixels, whole frames",
}
_NOTES = {
    "clips_truncated": "clips whose source ends early; its whole frames are here",
    "frames_colour_overlay": "frames left out, more than 5 % of them coloured marks",
    "frames_inpainted": "frames in which coloured marks were painted over",
    "frames_near_identical": "frames left out, equal to the one before",
    "links_not_followed": "symbolic links that lead out of the source, in a circle or nowhere: not read",
    "patients_of_many_studies": f"patient identifiers that cover more than {MANY_STUDIES} studies: placeholders?",
    "sources_without_patient": "sources without a patient identifier, or with a placeholder such as ANONYMOUS",
    "sources_grouped_by_study": "of these, those whose study stands for the patient in the split",
    "studies_of_one_patient": "studies of the identifier that covers most",
}


def contact_sheet(directory: Path | str, num_frames: int = 48) -> bytes:
    """PNG of frames from shards all over the directory, as the encoder will see them.

    Keys are hashes, so the first samples of a shard are a random choice of it.
    """
    manifest, out = load_manifest(directory), Store(directory)
    chosen = np.unique(np.linspace(0, len(manifest.shards) - 1, num_frames).round().astype(int))
    per_shard = math.ceil(num_frames / len(chosen))
    tiles = []
    for number in chosen:
        for members in islice(samples_of(out, manifest.shards[number].name), per_shard):
            key = members[0][0].partition(".")[0]
            sample = decode(key, {name.partition(".")[2]: data for name, data in members})
            stretched = stretch(sample.frame, sample.region, sample.meta.percentiles)
            tiles.append(to_square(stretched, sample.region, TILE)[0])
    return grid_png(tiles[:num_frames], COLUMNS)


def grid_png(tiles: list[np.ndarray], columns: int) -> bytes:
    """PNG of equal tiles, (h, w) or (h, w, 3) BGR uint8, in rows of `columns`."""
    rows = math.ceil(len(tiles) / columns)
    blank = np.zeros_like(tiles[0])
    padded = tiles + [blank] * (rows * columns - len(tiles))
    sheet = np.vstack([np.hstack(padded[row * columns : (row + 1) * columns]) for row in range(rows)])
    data: bytes = cv2.imencode(".png", sheet)[1].tobytes()
    return data


def write_report(directory: Path | str) -> str:
    """Write report.html into a finished shard directory; returns where it is."""
    manifest, out = load_manifest(directory), Store(directory)
    sections = [_outcomes(manifest), _certificates(manifest), _accepted(manifest, directory), *_refused(out)]
    sections += [_letters(manifest.pixels), _shards(manifest), _how(manifest), _signature(manifest)]
    vouched = {
        "certified": "Pixels without a certificate were refused.",
        "public": "The user vouched for pixels without a certificate.",
        "as_is": "The user vouched for all pixels; nothing was searched or cut.",
    }[manifest.pixels]
    lead = f"{manifest.num_samples()} frames in {len(manifest.shards)} shards. {vouched} Data {manifest.sha256()[:16]}."
    out.write(REPORT, render_page(f"Shards of {manifest.dataset}", lead, sections).encode())
    return out / REPORT


def _outcomes(manifest: Manifest) -> Section:
    meanings = {str(reason): reason.meaning for reason in Reason} | {"accepted": "its frames are in the shards"}
    rows = tuple((f"{name}: {meanings[name]}", str(count)) for name, count in manifest.outcomes.items())
    total = ("all sources", str(sum(manifest.outcomes.values())))
    return Section("What became of every source", table=(("outcome", "sources"), *rows, total))


def _certificates(manifest: Manifest) -> Section:
    rows = [(f"{name}: {_CERTIFICATES[name]}", str(count)) for name, count in manifest.certificates.items()]
    rows += [(text, str(manifest.notes[name])) for name, text in _NOTES.items() if name in manifest.notes]
    return Section("What vouches for the kept pixels, and what was changed", table=(("", "number"), *rows))


def _accepted(manifest: Manifest, directory: Path | str) -> Section:
    if not manifest.shards:
        return Section("Accepted frames", "None.")
    caption = "Frames as stored: cropped to the region, zero outside it, intensities stretched for display."
    return Section("Accepted frames", figures=(Figure(contact_sheet(directory), caption),))


def _refused(out: Store) -> list[Section]:
    """Blurred pictures of what was refused after it had been decoded, by reason."""
    tiles: dict[str, list[np.ndarray]] = {}
    for name in out.names(OUTCOMES, ".shards.json"):
        for reason, pictures in json.loads(out.read(f"{OUTCOMES}/{name}"))["refused"].items():
            kept = tiles.setdefault(reason, [])
            kept += [_tile(picture) for picture in pictures[: _MAX_REFUSED - len(kept)]]
    figures = tuple(
        Figure(grid_png(some, COLUMNS), f"{reason}: {Reason(reason).meaning}")
        for reason, some in sorted(tiles.items())
        if some
    )
    return [Section("Refused recordings, blurred to 16 x 16 levels", figures=figures)] if figures else []


def _tile(picture: str) -> np.ndarray:
    levels = np.frombuffer(bytes.fromhex(picture), np.uint8)
    side = math.isqrt(len(levels))
    tile: np.ndarray = cv2.resize(levels.reshape(side, side), (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    return tile


def _letters(pixels: Pixels) -> Section:
    """What the search for letters finds, and so what it leaves."""
    if pixels != "certified":
        return Section("Letters in the pixels", "They were not looked for: the user vouched for the pixels.")
    text = (
        "Every frame was searched as it is stored, and every clip as a whole at the resolution of its source; a clip "
        "in which letters were found is refused. Measured on text that was drawn into single frames, generated ones "
        "and real ones of devices and patients that were not used to set the limits. What is not found is stored: most "
        "text that is turned by 90 degrees, most single letters, and some of what is faint or very small."
    )
    rows = tuple((f.what, f"{f.found} of {f.number}", f"{f.found / max(1, f.number):.1%}") for f in figures())
    return Section("Letters in the pixels", text, table=(("drawn", "found", "share"), *rows))


def _shards(manifest: Manifest) -> Section:
    rows = tuple(
        (shard.name, str(shard.num_samples), f"{shard.num_bytes:,}", shard.sha256[:16])
        for shard in manifest.shards[:_MAX_SHARDS]
    )
    more = len(manifest.shards) - len(rows)
    text = f"{more} more in manifest.json." if more else ""
    return Section("Shards", text, table=(("shard", "frames", "bytes", "sha256"), *rows))


def _how(manifest: Manifest) -> Section:
    rows = [("pixels", manifest.pixels), ("frames per clip at most", str(manifest.max_frames))]
    rows += [("stride", str(manifest.stride)), ("share of patients for val", str(manifest.val_share))]
    rows += [("key", manifest.key_id[:8]), ("plan", manifest.plan[:8]), *manifest.tools.items()]
    return Section("How it was made", table=(("setting", "value"), *rows))


def _signature(manifest: Manifest) -> Section:
    text = (
        "Certified means certified by this policy; it is no expert determination. What is left to judge: letters "
        "inside the sector that were not found (the table above), faces in renderings, rare diseases and devices. "
        f"Reviewed, data {manifest.sha256()[:16]}:"
    )
    rows = (("name", "."), ("date", "."), ("signature", "."))
    return Section("Release", text, table=(("", " " * 40), *rows))
