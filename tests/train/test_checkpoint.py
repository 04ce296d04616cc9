"""Checkpoints: any ZeRO stage, whole or absent at any moment, the last and the best ones kept, copies elsewhere."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed import DeepSpeedEngine
from torch import nn

import train.shipper
import train.tensor_file
from sharding.recording import InputError
from sharding.store import Store
from tests.conftest import ROOT
from tests.sharding import conftest as sharding_fixtures
from train.checkpoint import Checkpoint, CheckpointStore, latest_checkpoint, restore_moments
from train.config import PretrainConfig
from train.engine import build_engine, set_still
from train.tensor_file import write_tensors

s3 = sharding_fixtures.s3
INPUTS = torch.linspace(-1, 1, 24).reshape(4, 6)
pytestmark = pytest.mark.usefixtures("alone")


def new_engine(zero_stage: int, weights: dict[str, torch.Tensor] | None = None) -> DeepSpeedEngine:
    optim = {"steps": 9, "batch": 4, "precision": "fp32", "lr": 1e-2}
    run = {"dir": "unused", "zero_stage": zero_stage, "micro_batch": 4}
    cfg = PretrainConfig.model_validate({"objective": "pixel", "data": {"shards": ["x"]}, "optim": optim, "run": run})
    torch.manual_seed(zero_stage)
    module = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2))
    if weights is not None:
        module.load_state_dict(weights)
    return build_engine(module, cfg, world=1)


def take_steps(engine: DeepSpeedEngine, num_steps: int) -> list[float]:
    losses = []
    for _ in range(num_steps):
        loss = engine(INPUTS).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def engine() -> DeepSpeedEngine:
    made = new_engine(zero_stage=1)
    take_steps(made, 1)
    return made


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def steps(*numbers: int) -> set[str]:
    return {f"step-{number:08d}.safetensors" for number in numbers}


def step_of(checkpoint: Checkpoint | None) -> int:
    assert checkpoint is not None
    return checkpoint.step


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize(("stage", "next_stage"), [(0, 1), (1, 0), (1, 1), (1, 2), (2, 3), (3, 0)])
def test_a_checkpoint_goes_on_at_another_zero_stage(stage: int, next_stage: int, tmp_path: Path) -> None:
    first = new_engine(stage)
    take_steps(first, 3)
    store = CheckpointStore(tmp_path, keep=1)
    store.save(first, 3, {"target.shift": torch.arange(4.0), "average.bias": torch.ones(2, dtype=torch.bfloat16)})
    settings = [(group["lr"], group["weight_decay"]) for group in first.optimizer.param_groups]
    undisturbed = take_steps(first, 3)
    checkpoint = store.latest()
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert checkpoint.tensors["target.shift"].tolist() == [0, 1, 2, 3]
    assert checkpoint.part("average")["bias"].dtype == torch.bfloat16
    second = new_engine(next_stage, checkpoint.part("weights"))
    set_still(second)
    take_steps(second, 1)
    restore_moments(second, checkpoint)
    for group, (rate, decay) in zip(second.optimizer.param_groups, settings, strict=True):
        group["lr"], group["weight_decay"] = rate, decay
    assert take_steps(second, 3) == undisturbed


def test_the_last_and_the_best_stay_also_after_a_restart(engine: DeepSpeedEngine, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    store = CheckpointStore(tmp_path, keep=1)
    assert store.latest() is None
    kept = []
    for step, score in enumerate((None, 0.5, 0.9, None, 0.4, 0.6), start=1):
        store.save(engine, step, {}, score)
        kept.append(names(folder))
    assert kept == [steps(1), steps(2), steps(2, 3), steps(2, 4), steps(5), steps(5, 6)]
    again = CheckpointStore(tmp_path, keep=2)
    assert (step_of(again.best()), step_of(again.latest())) == (5, 6)
    again.save(engine, 7, {}, 0.4)  # as good is not better
    again.save(engine, 8, {}, 0.45)
    assert names(folder) == steps(5, 7, 8)
    assert step_of(again.best()) == 5


def test_without_scores_there_is_no_best(engine: DeepSpeedEngine, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(engine, step, {})
    assert store.best() is None
    assert names(tmp_path / "checkpoints") == steps(2, 3)


@pytest.mark.parametrize(
    ("extra", "score", "message"),
    [
        ({}, float("nan"), "checkpoint of step 2: the score, nan, is not finite"),
        ({"average.x": torch.tensor([1.0, float("inf")])}, 0.1, "checkpoint of step 2: average.x is not finite"),
    ],
)
def test_what_is_not_finite_is_not_saved(
    engine: DeepSpeedEngine, extra: dict[str, torch.Tensor], score: float, message: str, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(engine, 1, {})
    with pytest.raises(FloatingPointError, match=message):
        store.save(engine, 2, extra, score)
    assert names(tmp_path / "checkpoints") == steps(1)


def test_only_rank_0_writes(engine: DeepSpeedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda said, **how: None)
    store = CheckpointStore(tmp_path, keep=1, copy_to=str(tmp_path / "copies"))
    store.save(engine, 1, {})
    store.close()
    assert not names(tmp_path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "cause"), [(cut, "is damaged \\(Error"), (flip, "is damaged \\(CRC-32 is ")])
def test_a_damaged_checkpoint_is_named_and_no_older_one_taken(
    engine: DeepSpeedEngine, damage: Callable[[Path], None], cause: str, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2):
        store.save(engine, step, {}, score=1 / step)
    damage(tmp_path / "checkpoints" / "step-00000002.safetensors")
    with pytest.raises(InputError, match=f"step-00000002.safetensors: {cause}.*delete it to go on from step-00000001"):
        latest_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"step-00000002.safetensors: is damaged .*; delete it"):
        store.best()
    (tmp_path / "checkpoints" / "step-00000002.safetensors").unlink()
    assert step_of(latest_checkpoint(tmp_path)) == 1


def test_a_damaged_older_checkpoint_is_said_at_the_start(engine: DeepSpeedEngine, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2):
        store.save(engine, step, {})
    cut(tmp_path / "checkpoints" / "step-00000001.safetensors")
    with pytest.raises(InputError, match=r"step-00000001.safetensors: is damaged"):
        CheckpointStore(tmp_path, keep=2)


def test_content_and_then_name_are_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "step-00000001.safetensors", []
    monkeypatch.setattr(train.tensor_file, "sync", lambda what: synced.append((what, what.exists(), path.exists())))
    write_tensors({"a": torch.ones(2)}, path, {})
    assert synced == [(tmp_path / ".step-00000001.safetensors.tmp", True, False), (tmp_path, True, True)]


def test_a_disk_that_fails_at_the_end_of_a_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(train.tensor_file, "sync", fail)
    with pytest.raises(InputError, match=r"cannot be written \(\[Errno 5\] Input/output error.*it needs 8 bytes"):
        write_tensors({"a": torch.ones(2)}, tmp_path / "step-00000001.safetensors", {})
    assert not names(tmp_path)


WRITE_FOREVER = """
import sys, time, torch, train.tensor_file
from pathlib import Path
train.tensor_file.sync = lambda path: time.sleep(60)
train.tensor_file.write_tensors({"a": torch.zeros(1 << 25)}, Path(sys.argv[1]), {})
"""


@pytest.mark.parametrize("moment", [".tmp*", ".step-00000002.safetensors.tmp"])
def test_a_save_that_is_killed_leaves_the_older_checkpoint(
    engine: DeepSpeedEngine, moment: str, tmp_path: Path
) -> None:
    CheckpointStore(tmp_path, keep=1).save(engine, 1, {})
    folder = tmp_path / "checkpoints"
    command = [sys.executable, "-c", WRITE_FOREVER, str(folder / "step-00000002.safetensors")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    wait_until(lambda: process.poll() is not None or bool(list(folder.glob(moment))))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(names(folder)) == 2
    assert step_of(latest_checkpoint(tmp_path)) == 1
    CheckpointStore(tmp_path, keep=1)
    assert names(folder) == steps(1)


FILL_THE_DISK = """
import sys, torch
from pathlib import Path
from sharding.recording import InputError
from train.checkpoint import latest_checkpoint
from train.tensor_file import write_tensors
folder = Path(sys.argv[1]) / "checkpoints"
folder.mkdir()
write_tensors({"a": torch.zeros(1000)}, folder / "step-00000001.safetensors", {})
try:
    write_tensors({"a": torch.zeros(1 << 20)}, folder / "step-00000002.safetensors", {})
except InputError as error:
    print(error)
print([path.name for path in folder.iterdir()], latest_checkpoint(folder.parent).step)
"""


def test_a_full_disk_is_said_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    command = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} || exit 99; {sys.executable} -c "$SCRIPT" {tmp_path}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"SCRIPT": FILL_THE_DISK, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no right to mount a small disk here")
    assert "step-00000002.safetensors: cannot be written (" in done.stdout, done.stderr
    assert "No space left on device" in done.stdout
    assert "it needs 4,194,304 bytes, 1,0" in done.stdout  # about a megabyte is free: nothing is left over
    assert "['step-00000001.safetensors'] 1" in done.stdout


def test_copies_in_a_folder_are_pruned_like_the_originals(engine: DeepSpeedEngine, tmp_path: Path) -> None:
    run_dir, copies = tmp_path / "run", tmp_path / "copies" / "run"
    copies.mkdir(parents=True)
    (copies / "step-00000000.safetensors").write_text("of another run")
    store = CheckpointStore(run_dir, keep=1, copy_to=str(tmp_path / "copies"))
    for step, score in ((1, 0.1), (2, 0.2)):
        store.save(engine, step, {}, score)
    store.close()
    assert names(copies) == steps(0, 1, 2)
    again = CheckpointStore(run_dir, keep=1, copy_to=f"{tmp_path}/copies/")
    for step in (3, 4):
        again.save(engine, step, {})
    again.close()
    assert names(copies) == steps(0, 1, 4)
    assert names(run_dir / "checkpoints") == steps(1, 4) | {"copied.json"}
    for name in steps(1, 4):
        assert (copies / name).read_bytes() == (run_dir / "checkpoints" / name).read_bytes()


@pytest.mark.launch
def test_copies_go_to_s3_and_what_was_left_is_copied_at_the_next_start(
    engine: DeepSpeedEngine, s3: str, tmp_path: Path
) -> None:
    CheckpointStore(tmp_path / "run", keep=2).save(engine, 1, {})  # no copy yet
    place = Store(f"{s3}/backups/run")
    store = CheckpointStore(tmp_path / "run", keep=2, copy_to=f"{s3}/backups")
    wait_until(lambda: bool(place.names("", "")))
    store.close()
    assert set(place.names("", "")) == steps(1)
    store = CheckpointStore(tmp_path / "run", keep=2, copy_to=f"{s3}/backups")
    for step in (2, 3):
        store.save(engine, step, {})
    store.close()
    assert set(place.names("", "")) == steps(2, 3)
    assert place.read(min(steps(2))) == (tmp_path / "run" / "checkpoints" / min(steps(2))).read_bytes()


def test_another_place_gets_everything_and_the_old_place_keeps_its_copies(
    engine: DeepSpeedEngine, tmp_path: Path
) -> None:
    for step, place in ((1, "a"), (2, "b")):
        store = CheckpointStore(tmp_path / "run", keep=2, copy_to=str(tmp_path / place))
        store.save(engine, step, {})
        store.close()
    assert names(tmp_path / "a" / "run") == steps(1)
    assert names(tmp_path / "b" / "run") == steps(1, 2)


def test_who_falls_behind_copies_the_latest(
    engine: DeepSpeedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, uploaded, upload = threading.Event(), [], Store.upload

    def slow(store: Store, local: Path, name: str) -> None:
        uploaded.append(name)
        may_go.wait(60)
        upload(store, local, name)

    monkeypatch.setattr(Store, "upload", slow)
    store = CheckpointStore(tmp_path / "run", keep=1, copy_to=str(tmp_path / "copies"))
    store.save(engine, 1, {})
    wait_until(lambda: bool(uploaded))
    for step in (2, 3, 4):  # none of these saves waits for the copy
        store.save(engine, step, {})
    may_go.set()
    store.close()
    assert set(uploaded) == steps(1, 4)
    assert names(tmp_path / "copies" / "run") == steps(4)


def break_place(place: Path) -> None:
    place.rmdir()
    place.write_text("a file where the folder was")


def test_a_failing_copy_is_a_warning_and_tried_again(
    engine: DeepSpeedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(train.shipper, "_RETRY_SECONDS", 0.05)
    place = tmp_path / "copies" / "run"
    store = CheckpointStore(tmp_path / "run", keep=1, copy_to=str(tmp_path / "copies"))
    break_place(place)
    with caplog.at_level(logging.WARNING):
        store.save(engine, 1, {})
        time.sleep(0.3)
    assert caplog.text.count(f"run.copy_to {place} fails (") == 1
    place.unlink()
    place.mkdir()
    wait_until(lambda: bool(names(place)))  # without a further save
    store.close()
    assert names(place) == steps(1)


def test_a_copy_that_never_succeeds_is_an_error_at_the_end(
    engine: DeepSpeedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.shipper, "_CLOSE_SECONDS", 0.5)
    store = CheckpointStore(tmp_path / "run", keep=1, copy_to=str(tmp_path / "copies"))
    break_place(tmp_path / "copies" / "run")
    store.save(engine, 1, {})
    with pytest.raises(
        InputError,
        match=r"copies/run is not up to date .*; without step-00000001.safetensors\); run the same command again",
    ):
        store.close()
    assert step_of(store.latest()) == 1


def test_a_place_of_no_known_kind_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run.copy_to s4://bucket/run: .*give a folder, or a URL such as"):
        CheckpointStore(tmp_path / "run", keep=1, copy_to="s4://bucket")
