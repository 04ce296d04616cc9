"""Paths of a config: what a shell would replace in them is replaced or refused, for nobody else does it."""

import re
from pathlib import Path
from typing import Any

_VARIABLE = re.compile(r"\$\{?[A-Za-z_]")


def written_out(place: Any) -> Any:  # noqa: ANN401 - what is no path is for the field's type to refuse
    """Replace a leading `~` by the home directory; URLs and names stay as they are.

    Raises:
        ValueError: an empty path, an environment variable, or a user that does not exist.

    """
    if not isinstance(place, str | Path):
        return place
    text = str(place)
    if not text:
        raise ValueError("must not be empty")
    if _VARIABLE.search(text):
        raise ValueError("variables of the shell are not replaced here; write the path out")
    if text.startswith("sqlite:///~"):
        raise ValueError("~ is not replaced in a URL; write the path out")
    if not text.startswith("~"):
        return place
    try:
        return type(place)(Path(text).expanduser())
    except RuntimeError:
        raise ValueError(f"{text.partition('/')[0]} is no user of this machine; write the path out") from None
