"""`make deploy-check`: every file of deploy/ against the schema or the linter of what will read it.

A check whose tool is not installed is skipped, and said to be; the extra `deploy-check` brings all but kubectl.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_DEPLOY = Path(__file__).parent
_OVERLAYS = sorted((_DEPLOY / "k8s" / "overlays").iterdir())
_SCRIPTS = sorted([*_DEPLOY.glob("*.sh"), *_DEPLOY.glob("slurm/*")])
_TRAINER = "trainer.kubeflow.org"
# of the published models: they ask for objects where the API server takes text and numbers
_SCALARS = {
    "IoK8sApimachineryPkgApiResourceQuantity": {"type": ["string", "number"]},
    "IoK8sApimachineryPkgUtilIntstrIntOrString": {"type": ["string", "integer"]},
}


@dataclass(frozen=True)
class Finding:
    """Of one check: what is wrong, or why nothing could be said."""

    what: str
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    def __str__(self) -> str:
        """A line, and one more for each problem."""
        state = f"skipped: {self.skipped}" if self.skipped else "FAILED" if self.problems else "ok"
        return "\n  ".join([f"{self.what}: {state}", *self.problems])


def check_all() -> Iterator[Finding]:
    """All checks, one after the other."""
    yield _run("scripts, shellcheck", "shellcheck", *map(str, _SCRIPTS))
    yield _run("Dockerfile, hadolint", "hadolint", str(_DEPLOY / "Dockerfile"))
    compose = str(_DEPLOY / "compose.yaml")
    yield _run("compose, its schema", "check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose)
    for overlay in _OVERLAYS:
        name = f"k8s/{overlay.name}"
        if shutil.which("kubectl") is None:
            yield Finding(name, skipped="kubectl is not installed")
            continue
        built = _run(f"{name}, kubectl kustomize", "kubectl", "kustomize", str(overlay))
        yield built
        if not built.problems:
            yield from _check_built(name, overlay)


def _check_built(name: str, overlay: Path) -> Iterator[Finding]:
    text = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=True).stdout
    documents = list(yaml.safe_load_all(text))
    plain = [document for document in documents if not document["apiVersion"].startswith(_TRAINER)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(plain, file)
        file.flush()
        yield _run(f"{name}, kubernetes-validate", "kubernetes-validate", "--strict", "--quiet", file.name)
    for document in documents:
        if document not in plain:
            yield check_trainer(f"{name}, {document['kind']}", document)


def check_trainer(what: str, document: dict[str, Any]) -> Finding:
    """A TrainJob or TrainingRuntime against the models that Kubeflow Trainer publishes of its API; no unknown keys."""
    try:
        from jsonschema import Draft202012Validator  # noqa: PLC0415 - both are installed for this check alone
        from kubeflow_trainer_api import models  # noqa: PLC0415
    except ImportError as error:
        return Finding(what, skipped=f"{error.name} is not installed")
    model = getattr(models, f"TrainerV1alpha1{document['kind']}")
    schema = strict(model.model_json_schema(by_alias=True))
    errors = Draft202012Validator(schema).iter_errors(document)
    return Finding(what, [f"{'.'.join(map(str, error.absolute_path))}: {_deepest(error)}" for error in errors])


def _deepest(error: Any) -> str:  # noqa: ANN401 - jsonschema has no types
    """The message of the innermost error: the outer ones say that nothing fits."""
    inner = [item for item in error.context if item.validator != "type"]
    return _deepest(inner[0]) if inner else str(error.message)[:300]


def strict(schema: Any) -> Any:  # noqa: ANN401
    """The same JSON schema, in which objects have the properties that it names and no others."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _SCALARS.get(key) or strict(value) for key, value in schema.items()}
    if isinstance(found.get("properties"), dict) and found.get("type") == "object":
        found["additionalProperties"] = False
    return found


def _run(what: str, *command: str) -> Finding:
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        return Finding(what, skipped=f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    return Finding(what, (done.stderr + done.stdout).splitlines()[-40:] if done.returncode else [])


def main(say: Callable[[Any], None] = print) -> int:
    """Print all findings; 1 when something is wrong."""
    findings = []
    for finding in check_all():
        say(finding)
        findings.append(finding)
    return int(any(finding.problems for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
