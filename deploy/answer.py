"""What the server says about an upload, as JSON."""

import numpy as np
from pydantic import BaseModel

from deploy.batching import Encoded
from deploy.decoders import Clip
from deploy.index import Index
from deploy.view import outlined, principal_map


class FrameVector(BaseModel):
    """A frame: its index in the upload, its region (0, 1, ...), time since the first frame, and its vector."""

    index: int
    region: int
    time_ms: float | None
    vector: list[float]


class ClipVector(BaseModel):
    """A region: what vouches for it, and the mean of its frames' vectors."""

    region: int
    certificate: str
    num_frames: int
    vector: list[float]


class Neighbour(BaseModel):
    """A frame of the table: cosine to the mean of the upload's frames, and what the table says of it."""

    cosine: float
    key: str
    dataset: str
    clip: str
    frame: int
    time_ms: float | None
    patient: str | None
    label: str | None


class View(BaseModel):
    """Pictures of one frame, as data URIs: the frame with its region outlined, and the map of its patches."""

    index: int
    frame: str
    components: str


class Answer(BaseModel):
    """What /embed says; `view` and `nearest` are null unless asked for, and `nearest` without a table."""

    model: str
    frames: list[FrameVector]
    clips: list[ClipVector]
    view: View | None = None
    nearest: list[Neighbour] | None = None


class Refusal(BaseModel):
    """Why there are no vectors: a code and what it means."""

    reason: str
    meaning: str


def shown_row(clips: list[Clip]) -> int:
    """Row, over all clips, of the frame that a view shows: the middle one of the first clip."""
    return len(clips[0].squares) // 2


def make_answer(model: str, clips: list[Clip], encoded: Encoded, index: Index | None, num_nearest: int) -> Answer:
    """Answer of an upload.

    Args:
        model: name of the encoder.
        clips: at least one.
        encoded: of their frames, one clip after the other; with patches of `shown_row` where a view is wanted.
        index: to search in.
        num_nearest: how many neighbours, 0: none.

    """
    bounds = np.cumsum([len(clip.squares) for clip in clips])[:-1]
    frames, means = [], []
    for region, (clip, vectors) in enumerate(zip(clips, np.split(encoded.vectors, bounds), strict=True)):
        frames += _frames(region, clip, vectors)
        mean = vectors.mean(axis=0).tolist()
        means.append(ClipVector(region=region, certificate=clip.certificate, num_frames=len(vectors), vector=mean))
    view = None if encoded.patches is None else _view(clips[0], shown_row(clips), encoded.patches)
    found = index.nearest(encoded.vectors.mean(axis=0), num_nearest) if index and num_nearest else None
    nearest = (
        None if found is None else [Neighbour.model_validate({"cosine": cosine, **facts}) for cosine, facts in found]
    )
    return Answer(model=model, frames=frames, clips=means, view=view, nearest=nearest)


def _frames(region: int, clip: Clip, vectors: np.ndarray) -> list[FrameVector]:
    times: tuple[float | None, ...] = clip.times_ms or (None,) * len(clip.frame_ids)
    rows = zip(clip.frame_ids, times, vectors.tolist(), strict=True)
    return [FrameVector(index=index, region=region, time_ms=time, vector=vector) for index, time, vector in rows]


def _view(clip: Clip, row: int, patches: np.ndarray) -> View:
    square = clip.squares[row]
    return View(index=clip.frame_ids[row], frame=outlined(square), components=principal_map(square, patches))
