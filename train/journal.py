"""What a run has to say, kept on disk until MLflow has it: `metrics.jsonl` and `run.json` of the run directory.

MLflow keeps one row per (metric, step, value, time), so a line may be sent twice. Nothing here knows MLflow.
"""

import json
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from sharding.recording import InputError
from sharding.store import Store, sync
from train.config import Section


class Artifact(Section):
    """A file or folder that waits to be sent, and the folder in MLflow where it goes (None: the root)."""

    path: Path
    folder: str | None = None

    def num_bytes(self) -> int:
        """Of the file, or of all files in the folder."""
        files = [self.path] if self.path.is_file() else [item for item in self.path.rglob("*") if item.is_file()]
        return sum(item.stat().st_size for item in files)


class RunRecord(Section):
    """Content of run.json.

    Attributes:
        run_key: drawn before the run exists in MLflow, where it is a tag: a run whose id was lost is found by it.
        tracking_uri: of the store.
        experiment: name.
        mlflow_run_id: None until MLflow has answered for the first time.
        num_sent: bytes of metrics.jsonl that MLflow has; a kill may leave it too small, never too large.
        redone_times: step to milliseconds since 1970 of steps that were logged and are done again.
        artifacts: not yet sent.

    """

    run_key: str
    tracking_uri: str
    experiment: str
    mlflow_run_id: str | None = None
    num_sent: int = 0
    redone_times: dict[int, int] = Field(default={})
    artifacts: tuple[Artifact, ...] = ()


def read_record(run_dir: Path) -> RunRecord | None:
    """The record of a run, None when it has none.

    Raises:
        InputError: run.json is not what we write.

    """
    path = run_dir / "run.json"
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate_json(path.read_text())
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"{path}: {'.'.join(map(str, problem['loc']))} {problem['msg']}; restore it, or delete it: "
            "the run then becomes a new one in MLflow"
        ) from None


class Journal:
    """The two files of one run; only rank 0 may have one.

    Args:
        run_dir: run directory, which exists.
        uri: of the MLflow store; another one than before gets the whole run.
        experiment: name; likewise.
        start: first step that will be appended; what is there from it on is dropped, it will be done again.

    Raises:
        InputError: a file is not what we write.

    """

    def __init__(self, run_dir: Path, uri: str, experiment: str, start: int) -> None:
        self._folder, self._lock = Store(run_dir), threading.RLock()
        self.path = run_dir / "metrics.jsonl"
        self.record = read_record(run_dir) or RunRecord(
            run_key=secrets.token_hex(16), tracking_uri=uri, experiment=experiment
        )
        place = {"tracking_uri": uri, "experiment": experiment}
        if place != self.record.model_dump(include=set(place)):
            self.record = self.record.model_copy(update=place | {"mlflow_run_id": None, "num_sent": 0})
        self._times: dict[int, int] = {}
        self._rewind(start)

    def update(self, **changes: Any) -> None:  # noqa: ANN401
        """Change fields of run.json."""
        with self._lock:
            self.record = self.record.model_copy(update=changes)
            self._folder.write("run.json", self.record.model_dump_json(indent=1).encode())

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step.

        A step has one time, also when it is done again, so that equal values stay one row in MLflow.
        """
        if step not in self._times:
            self._times = self.record.redone_times | {step: time.time_ns() // 1_000_000}
        time_ms = self._times[step]
        line = json.dumps({"step": step, "time_ms": time_ms, "metrics": metrics}) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error}); make room and run the same command again"
            ) from error

    def unsent(self, max_lines: int) -> tuple[list[dict[str, Any]], int]:
        """The next lines that MLflow lacks, and how many bytes it has when it has these, too."""
        if not self.path.exists():
            return [], 0
        with self.path.open("rb") as file:
            file.seek(self.record.num_sent)
            lines = [line for _, line in zip(range(max_lines), file, strict=False) if line.endswith(b"\n")]
        return [json.loads(line) for line in lines], self.record.num_sent + sum(map(len, lines))

    def add_artifact(self, artifact: Artifact) -> None:
        """Remember a file or folder. Given again, it counts once, but anew: it may have changed while it was sent."""
        with self._lock:
            self.update(artifacts=(*(item for item in self.record.artifacts if item != artifact), artifact))

    def remove_artifact(self, artifact: Artifact) -> None:
        """Forget the very one that was sent."""
        with self._lock:
            self.update(artifacts=tuple(item for item in self.record.artifacts if item is not artifact))

    def _rewind(self, start: int) -> None:
        """Cut the file before the first line of step `start` or later, or before a line that was never finished."""
        kept, times = 0, {step: at for step, at in self.record.redone_times.items() if step >= start}
        is_kept = True
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            if not line.endswith(b"\n"):
                break
            content = self._parse(line)
            is_kept = is_kept and content["step"] < start
            if is_kept:
                kept += len(line)
            else:
                times[content["step"]] = content["time_ms"]
        # first the times, then the cut: killed in between, it is done again
        self.update(redone_times=times, num_sent=min(self.record.num_sent, kept))
        self._times = times
        if self.path.exists():
            os.truncate(self.path, kept)
            sync(self.path)

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except ValueError as error:
            raise InputError(f"{self.path}: {line[:80]!r} is not a line of ours; restore or delete the file") from error
