"""YAML that people write: what the usual reader takes in silence, and they did not mean, is an error with its lines."""

import re
from pathlib import Path
from typing import Any

import yaml

from sharding.recording import InputError
from sharding.tables import decode_text

_OLD_NUMBER = re.compile(r"[-+]?(0[0-7_]*[0-7]|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # octal, or base 60


class _Loader(yaml.SafeLoader):
    """YAML's last value of a key wins, and `010` is 8: here both are errors."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - as in PyYAML
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                first = seen.setdefault((key.tag, key.value), key.start_mark)
                if first is not key.start_mark:
                    raise yaml.YAMLError(
                        f"{key.value} is given twice, in {_lines(first, key.start_mark)}; keep one of them"
                    )
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:  # noqa: ANN401
        node = super().compose_scalar_node(anchor)
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if is_number and _OLD_NUMBER.fullmatch(node.value):
            raise yaml.YAMLError(
                f"{node.value} in line {node.start_mark.line + 1} can be read in two ways: write a number without "
                "leading zeros and colons, or text in quotes"
            )
        return node


def _lines(one: yaml.Mark, other: yaml.Mark) -> str:
    if one.line == other.line:
        return f"line {one.line + 1}, columns {one.column + 1} and {other.column + 1}"
    return f"lines {one.line + 1} and {other.line + 1}"


def parse_yaml(text: str, name: str) -> Any:  # noqa: ANN401 - whatever the text holds
    """Content of a text.

    Args:
        text: YAML.
        name: what it is, for messages.

    Raises:
        InputError: not YAML, or a key given twice; names the lines.

    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-01
        raise InputError(f"{name}: {' '.join(str(error).split())}") from error


def read_yaml(path: Path, name: str) -> Any:  # noqa: ANN401
    """Content of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Args:
        path: that exists.
        name: what it is, for messages.

    Raises:
        InputError: it cannot be read, is no text, or see parse_yaml.

    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    return parse_yaml(decode_text(data, name), name)
