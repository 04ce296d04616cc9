"""Reading and writing the config of a run: one YAML file plus `section.key=value` overrides, strict."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sharding.recording import InputError
from sharding.store import Store
from sharding.yaml_file import parse_yaml, read_yaml
from train.config import PretrainConfig

_KINDS = {
    "model_type": "must be a section with keys",
    "path_type": "must be a path; put it in quotes",
    "tuple_type": "must be a list, such as [this]",
}


def load_config(path: Path, overrides: list[str]) -> PretrainConfig:
    """Read a YAML file and apply overrides like `optim.lr=3e-4`; values are YAML.

    Raises:
        InputError: one sentence that names file, key, value and what would be right.

    """
    content = read_config(path, overrides)
    try:
        return PretrainConfig.model_validate(content)
    except ValidationError as error:
        raise InputError(f"config {path}: {_sentence(error)}") from None


def read_config(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Read a YAML file and apply overrides, without a look at the keys.

    Raises:
        InputError: no such file, not YAML, a key given twice, or an override of no known form.

    """
    if not path.is_file():
        raise InputError(f"config {path}: no such file; train/configs has examples")
    content = read_yaml(path, f"config {path}")
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(f"config {path}: holds a {type(content).__name__}; sections such as `data:` are needed")
    for override in overrides:
        _apply(content, override)
    return content


def save_config(cfg: PretrainConfig, path: Path) -> None:
    """Write the resolved config as YAML that load_config reads back; a crash leaves the old file or the new one."""
    Store(path.parent).write(path.name, yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False).encode())


def results_differ(old: PretrainConfig, new: PretrainConfig) -> list[str]:
    """Keys outside `run` that differ, as `section.key: old -> new`."""
    before, after = _flat(old.model_dump(exclude={"run"})), _flat(new.model_dump(exclude={"run"}))
    keys = sorted(before.keys() | after.keys())
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def flat_config(cfg: PretrainConfig) -> dict[str, str]:
    """`section.key` to text, for MLflow parameters: what changes results, nothing of `run`."""
    return {key: str(value) for key, value in _flat(cfg.model_dump(exclude={"run"}, mode="json")).items()}


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _apply(content: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals:
        raise InputError(f"override {override!r}: give section.key=value, for example optim.lr=3e-4")
    *sections, key = name.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise InputError(f"override {override!r}: {section} is not a section")
    content[key] = parse_yaml(value, f"override {override!r}")


def _sentence(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        place = ".".join(map(str, problem["loc"])) or "config"
        if problem["type"] == "extra_forbidden":
            parts.append(f"{place}: unknown key{_suggestion(problem['loc'])}")
        elif problem["type"] == "missing":
            parts.append(f"{place}: missing")
        else:
            message = _KINDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
            is_section = isinstance(problem["input"], dict)  # its message names the key
            parts.append(f"{place}: {message}" + ("" if is_section else f", not {problem['input']!r}"))
    return "; ".join(parts)


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: Any = PretrainConfig
    for name in [name for name in location[:-1] if isinstance(name, str)]:  # a number: of a list of sections
        annotation = section.model_fields[name].annotation
        kinds = (annotation, *getattr(annotation, "__args__", ()))
        section = next(kind for kind in kinds if hasattr(kind, "model_fields"))
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(section.model_fields)}"
