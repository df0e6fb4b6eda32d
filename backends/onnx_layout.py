"""Where a runtime looks for the files of an ONNX directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Names of files.

    Attributes:
        folder: of the graph, relative to the directory, with a slash at its end.
        suffixes: what the graph's name ends in, by dtype.
        data_suffix: of the external file.
        section: of ``config.json``, where the runtime reads how the weights are stored; none when empty.
        names: what the runtime calls a dtype.
        genai: whether ``genai_config.json`` is written too.
    """

    folder: str
    suffixes: Mapping[str, str]
    data_suffix: str
    section: str
    names: Mapping[str, str]
    genai: bool

    def file(self, dtype: str) -> str:
        """The graph, relative to the directory."""
        return f"{self.folder}model{self.suffixes.get(dtype, '')}.onnx"

    def data(self, dtype: str) -> str:
        """The external file, beside the graph."""
        return self.file(dtype).removeprefix(self.folder) + self.data_suffix

    def config(self, dtype: str) -> dict[str, Any]:
        """What ``config.json`` says more."""
        if not self.section:
            return {}
        told: dict[str, Any] = {"dtype": self.names[dtype], "use_external_data_format": True}
        if dtype == "float16":
            told["kv_cache_dtype"] = {self.names[dtype]: "float16"}
        return {self.section: told}


LAYOUTS: Mapping[str, Layout] = {
    "onnxruntime": Layout("", {}, ".data", "", {}, genai=True),
    # Each dtype that transformers.js can be asked for stands for a suffix.
    "transformers.js": Layout(
        "onnx/",
        {"float16": "_fp16", "int8": "_int8", "int4": "_q4"},
        "_data",
        "transformers.js_config",
        {"float32": "fp32", "float16": "fp16", "int8": "int8", "int4": "q4"},
        genai=False,
    ),
}
