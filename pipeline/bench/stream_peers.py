"""Other loaders, as their documentation says they are fastest in one process."""

import train.vit  # noqa: F401 - torchvision, which they import, imports only after its guard

# isort: split
import io
import random
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from litdata import StreamingDataset as LitDataset
from litdata import optimize
from PIL import Image
from streaming import MDSWriter
from streaming import StreamingDataset as MosaicDataset
from torchvision import transforms

_SHUFFLE = 5000
_Decode = Callable[[bytes], np.ndarray]


def versions() -> str:
    """Of the loaders."""
    names = ("webdataset", "litdata", "mosaicml-streaming", "torch", "numpy", "opencv-python-headless")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _webdataset(folder: Path) -> Any:  # noqa: ANN401 - webdataset has no types
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(_SHUFFLE, rng=random.Random(0))


def webdataset_raw(folder: Path) -> list[int]:
    """Samples as bytes, through the shuffle buffer."""
    return [int(sample["__key__"]) for sample in _webdataset(folder)]


def webdataset_decoded(folder: Path, decode: _Decode) -> list[int]:
    """Samples decoded by the same function as ours."""
    return [key for key, _ in _webdataset(folder).map(lambda s: (int(s["__key__"]), decode(s["jpg"])))]


def webdataset_usual(folder: Path, size: int) -> list[int]:
    """The recipe of most papers: PIL, RGB, torchvision's crop, float32."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.6, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    def ready(sample: dict[str, Any]) -> tuple[int, Any]:
        picture = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        return int(sample["__key__"]), augment(picture)

    return [key for key, _ in _webdataset(folder).map(ready)]


def webdataset_resume(folder: Path, decode: _Decode, at: int, batch: int) -> None:
    """Run forward to a sample, then take a batch: the only way to go on with a tar stream."""
    pipeline = _webdataset(folder).map(lambda s: decode(s["jpg"]))
    assert len(list(islice(pipeline, at, at + batch))) == batch


def write_litdata(folder: Path, jpegs: dict[int, bytes]) -> None:
    """Chunks of 64 MB, as its guide says."""
    numbers = list(jpegs)
    optimize(
        fn=_LitItem(jpegs), inputs=numbers, output_dir=str(folder), chunk_bytes="64MB", num_workers=1,
        start_method="fork", verbose=False,
    )  # fmt: skip


class _LitItem:
    def __init__(self, jpegs: dict[int, bytes]) -> None:
        self._jpegs = jpegs

    def __call__(self, number: int) -> dict[str, Any]:
        return {"number": number, "jpg": self._jpegs[number]}


def litdata_raw(folder: Path) -> list[int]:
    """Items as bytes, shuffled."""
    return [int(item["number"]) for item in LitDataset(str(folder), shuffle=True, seed=0)]


def write_mosaic(folder: Path, jpegs: dict[int, bytes]) -> None:
    """MDS shards of 64 MB, its default."""
    with MDSWriter(out=str(folder), columns={"number": "int", "jpg": "bytes"}) as writer:
        for number, jpeg in jpegs.items():
            writer.write({"number": number, "jpg": jpeg})


def mosaic_raw(folder: Path) -> list[int]:
    """Samples as bytes, shuffled, as one rank without workers."""
    return [int(s["number"]) for s in MosaicDataset(local=str(folder), shuffle=True, batch_size=64, shuffle_seed=0)]
