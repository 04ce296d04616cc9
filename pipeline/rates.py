"""Rates that a plan is computed from: measured on a machine and kept as JSON, or assumed and said to be."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sharding.recording import InputError
from sharding.tables import decode_text

SHIPPED = Path(__file__).parent / "rates.json"  # of a cloud machine with 2 cores
PROCESSOR = "cpu"


class Rate(BaseModel):
    """A number with its unit and how it is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float = Field(ge=0)
    unit: str
    source: str
    is_measured: bool = True

    def __str__(self) -> str:
        return f"{three_digits(self.value)} {self.unit}, {'measured' if self.is_measured else 'assumed'}: {self.source}"


class Rates(BaseModel):
    """What `us-jepa plan --measure` finds.

    Attributes:
        machine: processor and number of cores.
        date: of measuring.
        frames_per_source: accepted frames of a source; refused sources have none.
        source_bytes: of the sources, per accepted frame.
        shard_bytes: of the shards, per frame.
        shard: frames that one core shards in a second.
        shard_start: seconds of a sharding job before the first frame and after the last.
        decode: frames that one core reads from shards in a second.
        train: images that one GPU or core trains on in a second, by `MODEL on DEVICE`; `cpu` is a core.
        train_start: seconds of a pretraining before the first step and after the last, by the same names.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    machine: str
    date: str
    frames_per_source: Rate
    source_bytes: Rate
    shard_bytes: Rate
    shard: Rate
    shard_start: Rate
    decode: Rate
    train: dict[str, Rate] = {}
    train_start: dict[str, Rate] = {}

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1) + "\n")


# What training on GPUs costs is assumed until somebody measures it on one.
PEAK = Rate(value=989, unit="TFLOP/s", source="an H100 SXM in bf16 by its data sheet", is_measured=False)
UTILISATION = Rate(
    value=0.25,
    unit="of the peak",
    source="published ViT pretraining: I-JEPA ViT-H/14 (72 h on 16 A100) 0.20 to 0.25, NeMo ViT-g/14 on H100 0.29",
    is_measured=False,
)


def load_rates(path: Path) -> Rates:
    """Read what `--measure` wrote.

    Raises:
        InputError: no such file, or it is none of ours.

    """
    if not path.is_file():
        raise InputError(f"rates {path}: no such file; make it with `us-jepa plan --measure --rates {path}`")
    try:
        return Rates.model_validate_json(decode_text(path.read_bytes(), f"rates {path}"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(
            f"rates {path}: {where}: {first['msg']}; make it again with `us-jepa plan --measure --rates {path}`"
        ) from error


def today() -> str:
    """ISO date."""
    return datetime.now(UTC).date().isoformat()


def three_digits(number: float) -> str:
    """A number to read: 0.0865, 8.65, 865, 8,650."""
    return f"{float(f'{number:.3g}'):,.0f}" if number >= 100 else f"{number:.3g}"  # noqa: PLR2004 - three digits
