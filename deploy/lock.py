"""`python -m deploy.lock > deploy/requirements.lock`: pins of everything that an image needs, from this environment.

What was tested is what is deployed. torch is pinned without its local version: the CPU image takes the same release
from another index. The libraries of CUDA are not in the list: each torch release names the ones that it needs.
"""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
_NOT_DEPLOYED = ("test", "dev", "learn", "deploy-check")


def pins() -> list[str]:
    """`name==version` of what pyproject.toml asks for and of what that needs, sorted.

    Raises:
        PackageNotFoundError: one of them is not installed here.

    """
    waiting, seen = needed(), set[tuple[str, str]]()
    while waiting:
        need = waiting.pop()
        wanted = {(canonicalize_name(need.name), extra) for extra in ("", *need.extras)} - seen
        seen |= wanted
        waiting += _needs(need.name, {extra for _, extra in wanted}) if wanted else []
    return sorted({f"{name}=={distribution(name).version.partition('+')[0]}" for name, _ in seen})


def needed() -> list[Requirement]:
    """Dependencies and extras of pyproject.toml, but those for development."""
    project = tomllib.loads(_PYPROJECT.read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in _NOT_DEPLOYED}
    return [Requirement(line) for line in [*project["dependencies"], *chain(*extras.values())]]


def _needs(name: str, extras: set[str]) -> Iterator[Requirement]:
    for line in distribution(name).requires or []:
        need = Requirement(line)
        if any(need.marker is None or need.marker.evaluate({"extra": extra}) for extra in extras) and not _is_cuda(
            need
        ):
            yield need


def _is_cuda(need: Requirement) -> bool:
    return bool(re.match(r"nvidia-|cuda-|triton$", need.name))


if __name__ == "__main__":
    try:
        print("\n".join(pins()))
    except PackageNotFoundError as error:
        raise SystemExit(
            f"{error.name} is not installed here; run `make setup` with the extras of pyproject.toml"
        ) from None
