"""What deploy/ says of the rest of the repository is so: commands, flags, settings, files, exit codes, pins."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from deploy.lock import needed
from pipeline.arguments import make_parser
from tests.conftest import ROOT
from train.command import STOPPED
from train.config_file import load_config

DEPLOY = ROOT / "deploy"
SCRIPTS = sorted([*DEPLOY.glob("*.sh"), *DEPLOY.glob("slurm/*")])
KUSTOMIZATIONS = sorted(DEPLOY.glob("k8s/**/kustomization.yaml"))
MANIFESTS = sorted(set(DEPLOY.glob("k8s/**/*.yaml")) - set(KUSTOMIZATIONS))
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def name(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def containers(content: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Everything with a command in it, at any depth."""
    if isinstance(content, dict):
        if "command" in content:
            yield content
        for value in content.values():
            yield from containers(value)
    elif isinstance(content, list):
        for item in content:
            yield from containers(item)


def commands_of_yaml(path: Path) -> list[list[str]]:
    found = [item for document in documents(path) for item in containers(document)]
    lines = [[*item["command"], *item.get("args", [])] for item in found if isinstance(item["command"], list)]
    return [line for line in lines if "us-jepa" in line or "torchrun" in line]


def commands_of_script(path: Path) -> list[list[str]]:
    """Words from us-jepa or pretrain.py on; comments, where `submit.sh` and others say how they are called, count."""
    text = path.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.search(r"us-jepa\"? (shards|verify|probe|pretrain)\b", line)]
    found = [
        re.sub(r'^.*?us-jepa"? ', "us-jepa ", line) for line in lines if "`" not in line and "[options" not in line
    ]
    return [shlex.split(line.partition(">")[0].rstrip(";&| ")) for line in found]


def check_flags(words: list[str]) -> None:
    """Each flag is one of the command's; the words need not be a whole command."""
    subcommands = make_parser("")._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    parser = subcommands[words[words.index("us-jepa") + 1]]  # type: ignore[index]
    unknown = {word for word in words if word.startswith("--") and word != "--"} - set(parser._option_string_actions)
    assert not unknown, f"{words}: {unknown}"


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_are_bash_that_stops_at_errors(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "set -euo pipefail" in path.read_text()
    assert (path.stat().st_mode & 0o111 != 0) == (path.suffix == ".sh")


@pytest.mark.parametrize("path", [*SCRIPTS, DEPLOY / "compose.yaml", *MANIFESTS], ids=name)
def test_commands_have_the_flags_that_files_use(path: Path) -> None:
    for words in commands_of_script(path) if path in SCRIPTS else commands_of_yaml(path):
        if "us-jepa" in words:
            check_flags(words)


def test_commands_are_found_at_all() -> None:
    found = {path.name: [words[:2] for words in commands_of_script(path)] for path in SCRIPTS}
    assert found["shards.sbatch"] == [["us-jepa", "shards"]] * 2 + [["us-jepa", "verify"]]
    assert found["dask.sbatch"] == [["us-jepa", "shards"], ["us-jepa", "verify"]]
    assert found["probe.sbatch"] == [["us-jepa", "probe"]]
    assert [path.stem for path in MANIFESTS if commands_of_yaml(path)] == ["pretrain", "runtime", "shards"]
    with pytest.raises(AssertionError, match="--slice"):
        check_flags(["us-jepa", "shards", "a", "b", "--slice"])


def test_settings_of_the_train_job_are_those_of_a_config() -> None:
    (job,) = documents(DEPLOY / "k8s/base/pretrain.yaml")
    args = [word.replace("/opt/us-jepa", str(ROOT)) for word in job["spec"]["trainer"]["args"]]
    assert args[0] == "--config"
    patches = yaml.safe_load((DEPLOY / "k8s/overlays/trial/kustomization.yaml").read_text())["patches"]
    more = [op["value"] for patch in patches for op in yaml.safe_load(patch["patch"]) if op["path"].endswith("args/-")]
    cfg = load_config(Path(args[1]), [*args[2:], *more])
    assert cfg.optim.warmup_steps < cfg.optim.steps
    assert str(cfg.run.dir).startswith("/runs/")


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=name)
def test_kustomizations_list_what_is_there(path: Path) -> None:
    listed = [path.parent / place for place in yaml.safe_load(path.read_text())["resources"]]
    assert all(place.exists() for place in listed)
    beside = set(path.parent.glob("*.yaml")) - {path}
    assert beside == {place for place in listed if place.is_file()}


def test_all_configs_that_are_named_exist() -> None:
    files = [*SCRIPTS, *MANIFESTS, *KUSTOMIZATIONS, DEPLOY / "compose.yaml"]
    named = {found for path in files for found in re.findall(r"train/configs/\w+\.yaml", path.read_text())}
    assert len(named) > 2
    assert not [place for place in named if not (ROOT / place).exists()]


def test_exit_codes_are_those_of_the_programs() -> None:
    assert f"again={STOPPED}\n" in (DEPLOY / "slurm/pretrain.sbatch").read_text()
    (job,) = documents(DEPLOY / "k8s/base/shards.yaml")
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert f"$(SLICE)/{job['spec']['completions']}" in str(job["spec"]["template"])


def test_mlflow_is_given_what_it_asks_for() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?\}", (DEPLOY / "mlflow_server.sh").read_text()))
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" in asked
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["mlflow"]
    assert not asked - set(compose["environment"])
    deployment = next(item for item in documents(DEPLOY / "k8s/base/mlflow.yaml") if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    literals = yaml.safe_load((DEPLOY / "k8s/base/kustomization.yaml").read_text())["configMapGenerator"][0]["literals"]
    assert not asked - {item["name"] for item in container["env"]} - {item.partition("=")[0] for item in literals}


def test_secrets_are_of_those_that_the_first_lines_make() -> None:
    text = "".join(path.read_text() for path in MANIFESTS)
    used = set(re.findall(r"secretKeyRef: \{name: us-jepa, key: ([\w-]+)\}", text))
    made = set(re.findall(r"--from-literal=([\w-]+)=", (DEPLOY / "k8s/base/kustomization.yaml").read_text()))
    assert used == made
    said = (DEPLOY / "compose.yaml").read_text()
    for variable in set(re.findall(r"\$\{(\w+):\?", said)):
        assert re.search(rf"^# .*\b{variable}\b", said, re.MULTILINE), variable


def test_images_are_stages_that_run_as_nobody_special() -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    wanted = {service["build"]["target"] for service in services if "build" in service}
    wanted |= set(re.findall(r"image: us-jepa:(\w+)", "".join(path.read_text() for path in MANIFESTS)))
    assert wanted == {"cpu", "cuda", "mlflow"}
    for stage in wanted:
        assert "USER 1000:1000" in stages[stage]
        assert "org.opencontainers.image.licenses" in stages[stage]
    assert "PYTHONSAFEPATH=1" in stages["python"]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert not [source for source in sources if not (ROOT / source).exists()]
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {source.partition("/")[0] for source in sources} == kept


def test_the_lock_file_pins_what_pyproject_asks_for() -> None:
    lines = (DEPLOY / "requirements.lock").read_text().split()
    pinned = {Requirement(line).name: line.partition("==")[2] for line in lines}
    wrong = [str(need) for need in needed() if not need.specifier.contains(pinned.get(need.name, "0"))]
    assert not wrong, f"{wrong}: run `python -m deploy.lock > deploy/requirements.lock`"
    assert len(lines) > 100


SBATCH = (
    '#!/bin/bash\nn=$(($(cat "$LOG.n" 2>/dev/null || echo 0) + 1))\necho $n > "$LOG.n"\necho "$@" >> "$LOG"\necho $n\n'
)


def submit(tmp_path: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """submit.sh with an sbatch that writes down what it was asked."""
    program = tmp_path / "sbatch"
    program.write_text(SBATCH)
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": str(tmp_path / "log")}
    command = [str(DEPLOY / "slurm/submit.sh"), *overrides]
    return subprocess.run(command, env=path | environment, cwd=ROOT, capture_output=True, text=True, check=False)


CHAIN = {
    "SRC": "tests",
    "OUT": "s3://bucket/shards",
    "CONFIG": "train/configs/vit_tiny.yaml",
    "RUN": "run",
    "DATA": "tests",
}


def test_each_job_of_the_chain_waits_for_the_one_before(tmp_path: Path) -> None:
    more = {
        "TEACHER_CONFIG": "train/configs/salt_stage1.yaml",
        "SLICES": "8",
        "PRETRAIN_SBATCH": "--nodes=4 --exclusive",
    }
    done = submit(tmp_path, "optim.lr=1", **CHAIN, **more)
    assert done.stdout.split() == ["shards", "1", "merge", "2", "teacher", "3", "pretrain", "4", "probe", "5"], (
        done.stderr
    )
    shards, merge, teacher, student, probe = (tmp_path / "log").read_text().splitlines()
    assert "--array=0-7 deploy/slurm/shards.sbatch" in shards
    assert "--dependency" not in shards
    assert shards.endswith(f"{ROOT}/tests s3://bucket/shards")
    assert "--dependency=afterany:1" in merge
    assert "--array" not in merge
    for line, before in ((teacher, 2), (student, 3), (probe, 4)):
        assert f"--dependency=afterok:{before}" in line
        assert "--kill-on-invalid-dep=yes" in line
    assert "--nodes=4 --exclusive deploy/slurm/pretrain.sbatch --config" in teacher
    assert teacher.endswith(f"data.shards=[s3://bucket/shards] optim.lr=1 run.dir={ROOT}/run-teacher")
    assert student.endswith(f"optim.lr=1 teacher.source={ROOT}/run-teacher run.dir={ROOT}/run")
    assert probe.endswith(f"deploy/slurm/probe.sbatch {ROOT}/run --data {ROOT}/tests")


def test_a_setting_of_the_chain_that_is_missing_is_named(tmp_path: Path) -> None:
    done = submit(tmp_path, **{key: value for key, value in CHAIN.items() if key != "DATA"})
    assert done.returncode == 2
    assert done.stderr.startswith("submit.sh: DATA is not set")
    assert not (tmp_path / "log").exists()


def test_targets_that_the_readme_names_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    named = {word for line in re.findall(r"\bmake ([a-z -]+)", readme) for word in line.split()[:1]}
    assert {"slurm-test", "deploy-check"} <= named & targets
    assert not {word for word in named if "-" in word} - targets
