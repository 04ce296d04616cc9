"""Device profiles: where a scanner draws its sector, as somebody at the site has checked and signed.

A profile is what certifies a still that declares no region. A YAML file holds a list of them:

    - manufacturer: ACME Ultrasound          # as in the DICOM header, letter case aside
      model: Scan 3000
      rows: 768
      columns: 1024
      polygon: [[312, 60], [712, 60], [980, 640], [512, 740], [44, 640]]   # x, y in pixels, inside which all is tissue
      reviewer: K. Example
      reviewed_on: 2026-11-01
      num_reviewed: 40                        # recordings that the reviewer looked at, at least 10
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sharding.recording import InputError
from sharding.tables import decode_text

_MIN_REVIEWED = 10


@dataclass(frozen=True)
class Profile:
    """Where one kind of scanner draws its sector.

    Attributes:
        manufacturer: lower case.
        model: lower case.
        rows: of the frames.
        columns: of the frames.
        polygon: corners (x, y) in pixels.
        signature: reviewer, day and number of recordings looked at.

    """

    manufacturer: str
    model: str
    rows: int
    columns: int
    polygon: tuple[tuple[int, int], ...]
    signature: tuple[str, str, int]

    def mask(self) -> np.ndarray:
        """(rows, columns) bool, true inside the polygon."""
        inside = np.zeros((self.rows, self.columns), np.uint8)
        cv2.fillPoly(inside, [np.array(self.polygon, np.int32)], 1)
        return inside.astype(bool)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    manufacturer: str = Field(min_length=1)
    model: str = Field(min_length=1)
    rows: int = Field(gt=0)
    columns: int = Field(gt=0)
    polygon: list[tuple[int, int]] = Field(min_length=3)
    reviewer: str = Field(min_length=1)
    reviewed_on: date
    num_reviewed: int = Field(ge=_MIN_REVIEWED)


def load_profiles(path: Path) -> tuple[Profile, ...]:
    """Read a file of profiles.

    Raises:
        InputError: names the file, the entry, the key and what is wrong with its value.

    """
    if not path.is_file():
        raise InputError(f"profiles {path}: no such file; see sharding/profiles.py for the format")
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(
            yaml.safe_load(decode_text(path.read_bytes(), f"profiles {path}"))
        )
    except yaml.YAMLError as error:
        raise InputError(f"profiles {path}: not YAML") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"profiles {path}: {where}: {first['msg']}; see sharding/profiles.py for the format"
        ) from error
    return tuple(_profile(entry, path) for entry in entries)


def _profile(entry: _Entry, path: Path) -> Profile:
    outside = [(x, y) for x, y in entry.polygon if not (0 <= x < entry.columns and 0 <= y < entry.rows)]
    if outside:
        raise InputError(
            f"profiles {path}: polygon of {entry.model}: corner {outside[0]} is outside {entry.columns} x {entry.rows}"
        )
    return Profile(
        manufacturer=entry.manufacturer.strip().lower(),
        model=entry.model.strip().lower(),
        rows=entry.rows,
        columns=entry.columns,
        polygon=tuple(entry.polygon),
        signature=(entry.reviewer, entry.reviewed_on.isoformat(), entry.num_reviewed),
    )


def find_profile(profiles: tuple[Profile, ...], device: tuple[str, str], shape: tuple[int, int]) -> Profile | None:
    """The profile of a device (manufacturer, model) whose frames have a shape (H, W); None where there is none."""
    manufacturer, model = (name.strip().lower() for name in device)
    wanted = (manufacturer, model, *shape)
    return next((p for p in profiles if (p.manufacturer, p.model, p.rows, p.columns) == wanted), None)
