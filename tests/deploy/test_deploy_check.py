"""make deploy-check finds what is wrong, and says what it could not look at."""

import copy
from typing import Any

import pytest
import yaml

from deploy import check
from tests.conftest import ROOT

JOB = yaml.safe_load((ROOT / "deploy/k8s/base/pretrain.yaml").read_text())
RUNTIME = yaml.safe_load((ROOT / "deploy/k8s/base/runtime.yaml").read_text())


def changed(document: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    found = node = copy.deepcopy(document)
    *path, last = place.split(".")
    for key in path:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value
    return found


CONTAINER = "spec.template.spec.replicatedJobs.0.template.spec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("document", "place", "value", "said"),
    [
        (JOB, "spec.trainer.numProcsPerNode", 8, "numProcsPerNode"),
        (JOB, "spec.trainer.numNodes", "two", "two"),
        (JOB, "spec.runtimeRef.kin", "x", "kin"),
        (RUNTIME, "spec.mlPolicy.pytorch", {}, "pytorch"),
        (RUNTIME, f"{CONTAINER}.comand", ["x"], "comand"),
        (RUNTIME, f"{CONTAINER}.env", [{"value": "nameless"}], "name"),
        (RUNTIME, "spec.template.spec.failurePolicy.maxRestart", 3, "maxRestart"),
    ],
)
def test_a_wrong_key_or_value_is_found(document: dict[str, Any], place: str, value: object, said: str) -> None:
    pytest.importorskip("kubeflow_trainer_api")
    pytest.importorskip("jsonschema")
    assert check.check_trainer("", document).problems == []
    (problem,) = check.check_trainer("", changed(document, place, value)).problems
    assert said in problem


def test_a_tool_that_is_missing_is_said() -> None:
    finding = check._run("files, linter", "no-such-linter", "x")
    assert str(finding) == "files, linter: skipped: no-such-linter is not installed"


def test_a_tool_that_complains_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = check._run("list", "ls", "/no/such/place")
    assert bad.problems
    said: list[str] = []
    monkeypatch.setattr(check, "check_all", lambda: iter([check.Finding("a"), bad]))
    assert check.main(lambda finding: said.append(str(finding))) == 1
    assert said[0] == "a: ok"
    assert said[1].startswith("list: FAILED\n  ")
    assert "cannot access '/no/such/place'" in said[1]
    monkeypatch.setattr(check, "check_all", lambda: iter([check.Finding("a", skipped="because")]))
    assert check.main(said.append) == 0
