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


def webdataset_of_rank(folder: Path) -> list[int]:
    """What a rank, told by RANK and WORLD_SIZE, sees of one pass."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    shuffled = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, nodesplitter=webdataset.split_by_node)
    return [int(sample["__key__"]) for sample in shuffled.shuffle(_SHUFFLE, rng=random.Random(0))]


class WebdatasetRaw:
    """Samples as bytes, through the shuffle buffer."""

    def __init__(self, folder: Path) -> None:
        self._pipeline = _webdataset(folder)

    def __call__(self) -> list[int]:
        """One pass: the numbers of the samples that came."""
        return [int(sample["__key__"]) for sample in self._pipeline]


class WebdatasetDecoded:
    """Samples decoded by the same function as ours."""

    def __init__(self, folder: Path, decode: _Decode) -> None:
        self._pipeline = _webdataset(folder).map(lambda s: (int(s["__key__"]), decode(s["jpg"])))

    def __call__(self) -> list[int]:
        """One pass: the numbers of the samples that came."""
        return [key for key, _ in self._pipeline]


class WebdatasetUsual:
    """The recipe of most papers: PIL, RGB, torchvision's crop, float32."""

    def __init__(self, folder: Path, size: int) -> None:
        self._augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, (0.6, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )
        self._pipeline = _webdataset(folder).map(self._ready)

    def _ready(self, sample: dict[str, Any]) -> tuple[int, Any]:
        picture = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        return int(sample["__key__"]), self._augment(picture)

    def __call__(self) -> list[int]:
        """One pass: the numbers of the samples that came."""
        return [key for key, _ in self._pipeline]


def webdataset_resume(folder: Path, decode: _Decode, at: int, batch: int) -> None:
    """Run forward to a sample, then take a batch: the only way to go on with a tar stream."""
    pipeline = _webdataset(folder).map(lambda s: decode(s["jpg"]))
    assert sum(1 for _ in islice(pipeline, at, at + batch)) == batch


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


class LitdataRaw:
    """Items as bytes, shuffled."""

    def __init__(self, folder: Path) -> None:
        self._dataset = LitDataset(str(folder), shuffle=True, seed=0)

    def __call__(self) -> list[int]:
        """One pass: the numbers of the samples that came."""
        return [int(item["number"]) for item in self._dataset]


def write_mosaic(folder: Path, jpegs: dict[int, bytes]) -> None:
    """MDS shards of 64 MB, its default."""
    with MDSWriter(out=str(folder), columns={"number": "int", "jpg": "bytes"}) as writer:
        for number, jpeg in jpegs.items():
            writer.write({"number": number, "jpg": jpeg})


class MosaicRaw:
    """Samples as bytes, shuffled, without workers."""

    def __init__(self, folder: Path, batch: int = 64) -> None:
        self._dataset = MosaicDataset(local=str(folder), shuffle=True, batch_size=batch, shuffle_seed=0)

    def __call__(self) -> list[int]:
        """One pass: the numbers of the samples that came."""
        return [int(sample["number"]) for sample in self._dataset]
