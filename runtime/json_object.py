"""Files that hold one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..ir.errors import RequestError


def read_json_object(path: Path, hint: str) -> dict[str, Any]:
    """What a file holds that exists.

    Args:
        path: the file.
        hint: what to do where it is damaged.

    Raises:
        RequestError: when it cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RequestError(f"{path} is damaged: {error}", hint) from error
    if not isinstance(data, dict):
        raise RequestError(f"{path} is damaged: it is not a JSON object", hint)
    return data
