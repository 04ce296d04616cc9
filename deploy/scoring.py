"""An encoder as `mlflow models serve` wants it: uploads in base64 in, vectors out.

    mlflow models serve -m MODEL --env-manager local --port 5001
    curl localhost:5001/invocations -H 'Content-Type: application/json' \\
        -d '{"dataframe_records": [{"upload": "BASE64 OF A DICOM, IMAGE OR VIDEO"}]}'

The scoring server has neither a token nor limits of its own, and no batches over requests: for anything but loopback
take `us-jepa serve`. Decoding, region, de-identification, the limits of a decoder and of a body are the same.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from deploy.answer import make_answer
from deploy.batching import Encoded
from deploy.decoders import Decoders
from deploy.embed import open_on_device, size_of, vectors_of
from deploy.upload import MemoryFile, Refused, UploadLimits, check_size
from eval.encoders import FrozenEncoder
from train.mlflow_store import in_one_sentence, recorded_run
from train.tracking import log_loadable

_COLUMN = "upload"
_NUM_DECODERS = 2


class Scorer:
    """What the scoring server calls.

    Args:
        encoder: on its device.
        limits: of each upload.

    """

    def __init__(self, encoder: FrozenEncoder, limits: UploadLimits) -> None:
        self._name, self._limits = encoder.name, limits
        self._forward = partial(vectors_of, encoder)
        self._decoders = Decoders(_NUM_DECODERS, limits, size_of(encoder))

    def predict(self, table: Mapping[str, Iterable[bytes]], params: object = None) -> list[dict[str, object]]:
        """One answer per row: what POST /embed of `us-jepa serve` says, or `reason` and `meaning`.

        Args:
            table: with a column `upload` of bytes.
            params: MLflow passes some; there are none.

        """
        return [self._answer(upload) for upload in table[_COLUMN]]

    def _answer(self, upload: bytes) -> dict[str, object]:
        try:
            check_size(len(upload), self._limits)
            with MemoryFile() as file:
                file.write(upload)
                clips = self._decoders.decode_here(file)
        except Refused as refused:
            return {"reason": refused.reason, "meaning": refused.meaning}
        vectors = self._forward(np.concatenate([clip.squares for clip in clips]))[0]
        answer = make_answer(self._name, clips, Encoded(vectors.cpu().numpy()), None, 0)
        return answer.model_dump(exclude={"view", "nearest"})


def _load_pyfunc(path: str) -> Scorer:
    """Entry for MLflow, which knows it by this name.

    Args:
        path: encoder folder.

    """
    return Scorer(open_on_device(path), UploadLimits())


def log_to_mlflow(run_dir: Path) -> str:
    """Log a run's encoder as a model of its MLflow run; returns the MODEL of `mlflow models serve`.

    Raises:
        InputError: the run is not in MLflow, was deleted there, or the store cannot be reached.

    """
    client, run_id = recorded_run(run_dir)
    with in_one_sentence(f"run {run_dir}: its encoder", "the same command sends it again"):
        return log_loadable(client, run_id, __name__, run_dir / "encoder", _COLUMN)
