"""How to load what was written, as Python."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...backends.huggingface.save import SavedModel


def loading(saved: SavedModel) -> list[str]:
    """Two lines of Python that load an artifact with transformers alone; none where its class is not known."""
    checks = saved.checks
    name = str(checks.get("loaded_by") or checks.get("described_by") or "").rpartition(".")[2]
    if not name:
        return []
    trust = ", trust_remote_code=True" if saved.code else ""
    path = json.dumps(str(saved.path), ensure_ascii=False)  # a string of Python too
    return [f"from transformers import {name}", f"model = {name}.from_pretrained({path}{trust})"]
