"""Names and folders of the files of an ONNX directory, as a runtime expects them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Names and folders of the files.

    Attributes:
        folder: the folder of the graph, relative to the directory, with a slash at the end.
        suffixes: dtype -> suffix of the name of the graph.
        data_suffix: suffix of the file of the weights.
        section: the section of ``config.json`` that tells the runtime how weights are stored; "" when there is none.
        names: dtype -> its name in the runtime.
        genai: whether ``genai_config.json`` is written.
    """

    folder: str
    suffixes: Mapping[str, str]
    data_suffix: str
    section: str
    names: Mapping[str, str]
    genai: bool

    def file(self, dtype: str) -> str:
        """The file of the graph, relative to the directory."""
        return f"{self.folder}model{self.suffixes.get(dtype, '')}.onnx"

    def data(self, dtype: str) -> str:
        """The file of the weights, in the folder of the graph."""
        return self.file(dtype).removeprefix(self.folder) + self.data_suffix

    def config(self, dtype: str) -> dict[str, Any]:
        """Further entries of ``config.json``."""
        if not self.section:
            return {}
        told: dict[str, Any] = {"dtype": self.names[dtype], "use_external_data_format": True}
        if dtype == "float16":
            told["kv_cache_dtype"] = {self.names[dtype]: "float16"}
        return {self.section: told}


LAYOUTS: Mapping[str, Layout] = {
    "onnxruntime": Layout("", {}, ".data", "", {}, genai=True),
    # transformers.js finds the file of a dtype by its suffix.
    "transformers.js": Layout(
        "onnx/",
        {"float16": "_fp16", "int8": "_int8", "int4": "_q4"},
        "_data",
        "transformers.js_config",
        {"float32": "fp32", "float16": "fp16", "int8": "int8", "int4": "q4"},
        genai=False,
    ),
}
