"""One safetensors file that is whole, or absent, or known to be damaged."""

import hashlib
import shutil
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from sharding.recording import InputError
from sharding.store import sync


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, header: dict[str, str]) -> None:
    """Write tensors of the CPU; a crash at any moment leaves no file of this name, or the whole one.

    Raises:
        InputError: the disk is full or fails; names the file, the bytes it needs and the bytes that are free.

    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, metadata=header | {"crc32": _crc32(tensors)})
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (SafetensorError, OSError) as error:
        needed, free = sum(value.nbytes for value in tensors.values()), shutil.disk_usage(path.parent).free
        raise InputError(
            f"checkpoint {path}: cannot be written ({error}); it needs {needed:,} bytes, {free:,} are free. "
            "Make room and run the same command again: the checkpoint before it is kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path, way_out: str) -> dict[str, torch.Tensor]:
    """Read a file that `write_tensors` wrote.

    Raises:
        InputError: it is damaged; `way_out` says what to do.

    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path}: is damaged ({error}); {way_out}") from error
    expected, found = read_header(path).get("crc32"), _crc32(tensors)
    if found != expected:
        raise InputError(f"checkpoint {path}: is damaged (CRC-32 is {found}, not {expected}); {way_out}")
    return tensors


def read_header(path: Path) -> dict[str, str]:
    """The texts in the header of a file.

    Raises:
        InputError: it is damaged.

    """
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path}: is damaged ({error}); delete it") from error


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left: safetensors' own temporary files, and ours."""
    for left_over in (*folder.glob(".tmp*"), *folder.glob(".*.tmp")):
        left_over.unlink()


def _crc32(tensors: dict[str, torch.Tensor]) -> str:
    """Of names and bytes: safetensors notices a file that was cut, but not one that was changed."""
    crc = 0
    for name in sorted(tensors):
        content = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
        crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def file_sha256(path: Path) -> str:
    """Of a whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
