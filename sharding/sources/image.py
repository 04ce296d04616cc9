"""Still images: png, jpg, tif, bmp."""

from pathlib import Path

import cv2

from sharding.recording import Reason, Recording, Rejected


def read_image(path: Path, name: str) -> Recording:
    """Decode an image to a recording of one grey frame (1, H, W) uint8.

    Raises:
        Rejected: `undecodable`.

    """
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise Rejected(Reason.UNDECODABLE)
    return Recording(frames=pixels[None], source_kind="image", patient=name, clip=name)
