"""Keyed pseudonyms, and the closed tables of what may be said about a source.

Nothing is scrubbed: what is stored is built from nothing, out of the lists here. Free text never passes.
"""

import base64
import hashlib
import hmac
import secrets
from contextlib import suppress
from pathlib import Path

from sharding.recording import InputError

_KEY_BYTES = 32
_MANUFACTURERS = {
    "ge": "ge", "general electric": "ge", "philips": "philips", "atl": "philips", "siemens": "siemens",
    "acuson": "siemens", "canon": "canon", "toshiba": "canon", "samsung": "samsung", "medison": "samsung",
    "mindray": "mindray", "sonosite": "sonosite", "fujifilm": "fujifilm", "hitachi": "hitachi", "aloka": "hitachi",
    "esaote": "esaote", "supersonic": "supersonic", "butterfly": "butterfly", "clarius": "clarius",
    "terason": "terason", "teratech": "terason",
}  # fmt: skip
_BODY_PARTS = {
    "ABDOMEN", "AORTA", "ARM", "BLADDER", "BRAIN", "BREAST", "CAROTID", "CHEST", "FETUS", "GALLBLADDER", "HEART",
    "HIP", "KIDNEY", "KNEE", "LEG", "LIVER", "LUNG", "MUSCLE", "NECK", "OVARY", "PANCREAS", "PELVIS", "PROSTATE",
    "SHOULDER", "SPLEEN", "TESTIS", "THYROID", "UTERUS",
}  # fmt: skip


class Pseudonyms:
    """HMAC-SHA-256 pseudonyms with one secret key.

    Args:
        key: secret of at least 32 bytes.

    Raises:
        ValueError: the key is shorter.

    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _KEY_BYTES:
            raise ValueError(f"key of {len(key)} bytes, at least {_KEY_BYTES} are needed")
        self._key = key

    def of(self, domain: str, value: str) -> str:
        """128-bit pseudonym of `value`, 26 characters [a-z2-7]; domains never collide."""
        return base64.b32encode(self._digest(domain, value)[:16]).decode().lower().rstrip("=")

    def number(self, domain: str, value: str) -> int:
        """64-bit keyed number, for splits and units that stay put when the source grows."""
        return int.from_bytes(self._digest(domain, value)[:8])

    def _digest(self, domain: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{domain}\0{value}".encode(), hashlib.sha256)


def load_key(path: Path) -> bytes:
    """Read the secret key; make one, readable by its owner alone, where there is none.

    Raises:
        InputError: the file is open to others, or too short to be a secret.

    """
    if not path.exists():
        _make_key(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise InputError(f"key file {path}: mode is {mode:04o}, others can read it; run `chmod 600 {path}`")
    key = path.read_bytes().strip()
    if len(key) < _KEY_BYTES:
        raise InputError(f"key file {path}: {len(key)} bytes, at least {_KEY_BYTES} are needed")
    return key


def _make_key(path: Path) -> None:
    """Many tasks of a job array may come here at once: the first key stays, and nobody reads a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    draft.touch(mode=0o600, exist_ok=False)
    try:
        draft.write_bytes(secrets.token_hex(_KEY_BYTES).encode())
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()


def allowed_tags(manufacturer: str, body_part: str) -> dict[str, str]:
    """Manufacturer family and coded body part, from closed tables; what is not in them is left out."""
    words = manufacturer.lower()
    families = [family for word, family in _MANUFACTURERS.items() if words.startswith(word)]
    tags = {"manufacturer": families[0] if families else "other"} if words else {}
    if body_part.strip().upper() in _BODY_PARTS:
        tags["body_part"] = body_part.strip().lower()
    return tags


def is_allowed(manufacturer: str | None, body_part: str | None) -> bool:
    """Whether both come from the closed tables, or say nothing."""
    families = {None, "other", *_MANUFACTURERS.values()}
    return manufacturer in families and (body_part is None or body_part.upper() in _BODY_PARTS)
