"""The archive of an exported program, read without running anything in it.

``torch.export.load`` unpickles what an archive holds, evaluates its expressions as Python, and loads compiled
libraries. So this module reads the parts that are data: JSON, and the bytes of tensors. It names every other part, and
refuses it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch._export.serde import serialize as serde

from ...ir.errors import RequestError

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"

_DATA = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/version|\.data/serialization_id"
    rf"|{re.escape(MODEL)}|{re.escape(WEIGHTS)}|{re.escape(CONSTANTS)}|data/weights/weight_\d+|data/constants/tensor_\d+"
)
"""The members that hold data."""

HINT = "pass allow_pickle=True if you trust its source, or get the artifact from a newer fxprune"


class ProgramArchive:
    """An archive that holds data only.

    Args:
        path: the file.

    Raises:
        RequestError: it holds a pickle, a library, or another part that is not known to be data; or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise RequestError(f"{path} is damaged: {error}", "write the artifact again") from error
        self._root = next(iter(self._zip.namelist()), "").partition("/")[0]
        self._flat: dict[str, torch.Tensor] = {}
        for member in self._zip.infolist():
            name = member.filename.removeprefix(f"{self._root}/")
            if name == SAMPLES and not member.file_size:
                continue
            if not _DATA.fullmatch(name):
                raise self.refused(f"holds {member.filename!r}, which may run code when it is loaded")
            if member.compress_type != zipfile.ZIP_STORED:
                raise self.refused(f"holds {member.filename!r} compressed, which torch does not write")

    def __enter__(self) -> ProgramArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def refused(self, why: str) -> RequestError:
        """An error for what only ``torch.export.load`` reads."""
        return RequestError(f"{self._path} {why}", HINT)

    def json(self, name: str) -> Any:
        """The JSON data of a member."""
        return json.loads(self._read(name))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> a parameter, a buffer or a constant. Those that share memory in the program share it here."""
        found: dict[str, torch.Tensor] = {}
        for config, folder in ((WEIGHTS, "data/weights"), (CONSTANTS, "data/constants")):
            same: dict[str, torch.Tensor] = {}
            for name, entry in self.json(config)["config"].items():
                if entry["use_pickle"] or entry["tensor_meta"] is None:
                    raise self.refused(f"holds {name!r} as a pickle, {folder}/{entry['path_name']}")
                key = json.dumps(entry, sort_keys=True)
                found[name] = same.setdefault(key, self._tensor(f"{folder}/{entry['path_name']}", entry))
        return found

    def _tensor(self, member: str, entry: Mapping[str, Any]) -> torch.Tensor:
        about = entry["tensor_meta"]
        dtype, shape = scalar_type(about["dtype"]), [whole(size) for size in about["sizes"]]
        if member not in self._flat:
            data = bytearray(self._read(member))
            self._flat[member] = torch.frombuffer(data, dtype=dtype) if data else torch.zeros(prod(shape), dtype=dtype)
        strides = [whole(stride) for stride in about["strides"]]
        made = self._flat[member].view(dtype).as_strided(shape, strides, whole(about["storage_offset"]))
        return torch.nn.Parameter(made, bool(about["requires_grad"])) if entry["is_param"] else made

    def _read(self, name: str) -> bytes:
        return self._zip.read(f"{self._root}/{name}")


def scalar_type(number: Any) -> torch.dtype:
    """The dtype with a number in the archive."""
    return serde._SERIALIZE_TO_TORCH_DTYPE[number]


def whole(size: Mapping[str, Any]) -> int:
    """A size that is a number, and no expression.

    Raises:
        ValueError: it is something else.
    """
    found = size.get("as_int")
    if type(found) is not int:
        raise ValueError(f"a size is {dict(size)}")
    return found
