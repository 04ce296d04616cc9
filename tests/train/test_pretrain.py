"""The real launcher: ranks agree, a killed run continues, messages are one sentence."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
import yaml

from sharding.tar_index import load_index
from tests.conftest import ROOT, run_command
from train.config_file import load_config
from train.run import open_run
from train.vit import load_encoder, save_encoder

pytestmark = pytest.mark.launch
STEPS = 8
TINY = {
    "data": {"canvas": 80},
    "masks": {"context_tokens": 6, "target_tokens": 2, "min_patches": 1},
    "student": {"arch": "vit_tiny_patch16_224", "image_size": 64},
    "predictor": {"depth": 1, "width": 48, "num_heads": 3},
    "optim": {"batch": 8, "steps": STEPS, "lr": 1e-3, "warmup_steps": 2, "precision": "fp32"},
    "run": {"micro_batch": 4, "num_workers": 0, "log_every": 1, "save_every": 3},
}


def config(folder: Path, shards: Path, name: str, **run: object) -> Path:
    content = json.loads(json.dumps(TINY))
    content["data"]["shards"] = [str(shards)]
    content["run"] |= {"dir": str(folder / name), "tracking_uri": f"sqlite:///{folder}/mlflow.db", **run}
    if name == "teacher":
        content |= {"objective": "pixel", "target": {"loss": "mse"}}
    else:
        content["teacher"] = {"source": str(folder / "teacher")}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def pretrain(path: Path, num_ranks: int) -> None:
    # the port is per test process, so that two test runs on one machine do not meet
    done = run_command(
        "deepspeed", "--master_port", str(20_000 + os.getpid() % 20_000), "--num_gpus", str(num_ranks),
        str(ROOT / "train" / "pretrain.py"), "--config", str(path),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def metrics(run_dir: Path, name: str) -> list[float]:
    lines = [json.loads(line)["metrics"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def losses(run_dir: Path) -> list[float]:
    return metrics(run_dir, "train/loss")


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher made by plain python in one process, and an undisturbed run of two ranks on it."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = config(folder, shards, "teacher")
    done = run_command("python", str(ROOT / "train" / "pretrain.py"), "--config", str(teacher), "optim.steps=2")
    assert done.returncode == 0, done.stderr[-2000:]
    pretrain(config(folder, shards, "two"), num_ranks=2)
    return folder


def test_a_run_leaves_exactly_these_files(runs: Path) -> None:
    files = {str(path.relative_to(runs / "two")) for path in (runs / "two").rglob("*") if path.is_file()}
    assert files == {
        "config.yaml", "metrics.jsonl", "run.json", "encoder/config.json", "encoder/model.safetensors",
        "checkpoints/step-00000006.safetensors", "checkpoints/step-00000008.safetensors",
    } | {f"pictures/{name}-0000000{step}.png" for name in ("masks", "features") for step in (3, 6, 8)}  # fmt: skip


def test_one_rank_with_twice_the_micro_batch_logs_the_same_losses(runs: Path, shards: Path) -> None:
    pretrain(config(runs, shards, "one", micro_batch=8), num_ranks=1)
    assert losses(runs / "one") == pytest.approx(losses(runs / "two"), abs=1e-4)
    assert len(set(losses(runs / "one"))) == STEPS


def test_a_killed_rank_ends_the_run_which_goes_on_with_another_world(runs: Path, shards: Path) -> None:
    path = config(runs, shards, "killed")
    launcher = Path(sys.executable).parent / "deepspeed"
    process = subprocess.Popen(
        [str(launcher), "--master_port", "28711", "--num_gpus", "2", str(ROOT / "train" / "pretrain.py"),
         "--config", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = runs / "killed" / "checkpoints"
    deadline = time.monotonic() + 200
    while not list(checkpoints.glob("step-*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if "--local_rank=1" in child.cmdline()).kill()
    assert process.wait(timeout=60) != 0  # no hang: the launcher ends the others
    run_id = json.loads((runs / "killed" / "run.json").read_text())["mlflow_run_id"]
    assert not (runs / "killed" / "encoder").exists()
    pretrain(path, num_ranks=1)
    assert losses(runs / "killed") == pytest.approx(losses(runs / "two"), abs=1e-5)
    assert metrics(runs / "killed", "data/keys_hash") == metrics(runs / "two", "data/keys_hash")
    client = mlflow.MlflowClient(f"sqlite:///{runs}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert int(run.data.tags["resumed_at_step"]) > 0
    assert run.data.metrics["data/bad_undecodable"] == 0
    history = client.get_metric_history(run_id, "train/loss")
    assert [point.step for point in sorted(history, key=lambda point: point.step)] == list(range(STEPS))


@pytest.mark.slow
def test_bad_samples_above_the_limit_end_the_run(runs: Path, shards: Path) -> None:
    copy = runs / "copy"
    shutil.copytree(shards, copy)
    for tar in copy.glob("train-*.tar"):
        index, data = load_index(tar), bytearray(tar.read_bytes())
        for start, end in zip(index[".jpg"][::2], index[".jpg/end"][::2], strict=True):
            data[start:end] = bytes(end - start)
        tar.write_bytes(data)
    path = config(runs, copy, "bad", num_workers=1)
    done = run_command("python", str(ROOT / "train" / "pretrain.py"), "--config", str(path))
    assert done.returncode == 2
    counted = r"data: (\d+) samples of epoch 1 cannot be read so far \(\1 undecodable\); "
    allowed = r"data.max_bad_fraction 0.001 of its \d+ allows 0; one of them: shard .*/train-\S+\.tar: .*jpg"
    assert re.search(counted + allowed, done.stderr), done.stderr
    done = run_command("python", str(ROOT / "train" / "pretrain.py"), "--config", str(path), "data.max_bad_fraction=1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics(runs / "bad", "data/bad_undecodable")[-1] > 0


def test_a_loss_that_is_not_finite_ends_the_run_and_names_step_and_rank(shards: Path, tmp_path: Path) -> None:
    path = config(tmp_path, shards, "teacher")
    explode = ("optim.lr=1e30", "optim.start_lr=1e-5", "optim.warmup_steps=2", "run.save_every=100")
    done = run_command("python", str(ROOT / "train" / "pretrain.py"), "--config", str(path), *explode)
    assert done.returncode == 1
    assert "the loss is not finite at step 2 on rank 0; the last good checkpoint is in" in done.stderr
    assert f"{tmp_path}/teacher/checkpoints" in done.stderr
    run_id = json.loads((tmp_path / "teacher" / "run.json").read_text())["mlflow_run_id"]
    assert mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run_id).info.status == "FAILED"
    assert not (tmp_path / "teacher" / "encoder").exists()


def test_a_resumed_run_refuses_other_settings(runs: Path) -> None:
    done = run_command(
        "python", str(ROOT / "train" / "pretrain.py"), "--config", str(runs / "two.yaml"), "masks.num_targets=3"
    )
    assert done.returncode == 2
    assert "is at step 8 of another config (masks.num_targets: 4 -> 3)" in done.stderr


def test_a_config_that_changes_before_the_first_checkpoint_is_a_new_run_in_mlflow(tmp_path: Path) -> None:
    first = load_config(config(tmp_path, tmp_path / "shards", "mine"), [])
    open_run(first, None)
    (tmp_path / "mine" / "run.json").touch()
    open_run(first, None)
    assert (tmp_path / "mine" / "run.json").exists()
    open_run(load_config(tmp_path / "mine.yaml", ["optim.lr=1"]), None)
    assert not (tmp_path / "mine" / "run.json").exists()
    assert load_config(tmp_path / "mine" / "config.yaml", []).optim.lr == 1


def test_a_resumed_run_refuses_another_teacher_of_the_same_name(runs: Path) -> None:
    folder, kept = runs / "teacher" / "encoder", runs / "kept"
    shutil.copytree(folder, kept)
    encoder = load_encoder(folder)
    with torch.no_grad():
        encoder.vit.norm.bias += 1
    save_encoder(encoder, folder, {})
    done = run_command("python", str(ROOT / "train" / "pretrain.py"), "--config", str(runs / "two.yaml"))
    shutil.rmtree(folder)
    kept.rename(folder)
    assert done.returncode == 2, done.stderr
    assert re.search(r"teacher_sha256 was \w{12} until step 8, and is \w{12} now; bring back what it was", done.stderr)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.warmup=3", "optim.warmup: unknown key; did you mean warmup_steps?"),
        ("data.shards=[/no/such/shards]", "shards: /no/such/shards is not a folder; make it with `make shards"),
    ],
)
def test_a_wrong_setting_ends_in_one_sentence_and_exit_code_2(runs: Path, override: str, message: str) -> None:
    done = run_command("python", str(ROOT / "train" / "pretrain.py"), "--config", str(runs / "two.yaml"), override)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_line_is_read_without_what_takes_seconds_to_import() -> None:
    said = run_command("python", "-c", "import sys, train.command; print(*sys.modules)", cwd=ROOT).stdout.split()
    assert "train.command" in said
    assert {"torch", "deepspeed", "mlflow"}.isdisjoint(said)
