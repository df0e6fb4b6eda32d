"""onnx: the exporter for ONNX Runtime, onnxruntime-genai and transformers.js."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...ir.errors import RequestError
from ...ir.extras import EXTRAS
from ...ir.options import option
from ..exporter import ExportRequest
from .choices import ONNX_DTYPES, PROVIDERS, check_opset
from .layout import LAYOUTS

if TYPE_CHECKING:
    from .artifact import OnnxReport


@dataclass(frozen=True, kw_only=True)
class Onnx:
    """An ONNX graph; of a causal language model by default one that generates, with a cache of keys and values."""

    name: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = EXTRAS["onnx"]

    dtype: str = option("float32", "of the weights; int8 and int4 are weight-only", ONNX_DTYPES)
    layout: str = option("onnxruntime", "names and places of the files", tuple(LAYOUTS))
    optimize: str = option(
        "cpu", "fuse for ONNX Runtime on this device, or none: only standard operators", tuple(PROVIDERS)
    )
    opset: int | None = option(None, "version of the ONNX operator set; the exporter's own choice when none")
    cache: bool = option(True, "whether a causal language model takes and returns keys and values")

    def check(self) -> None:
        """Refuse an opset that the tools cannot write or read; every other option has a list of choices."""
        check_opset(self.opset)

    def export(self, request: ExportRequest) -> OnnxReport:
        """Write an ONNX directory."""
        from .artifact import OnnxRequest
        from .decoder import export_onnx
        from .forward import ExportedForward, export_forward

        if not request.causal_lm and not self.cache:
            raise RequestError(
                f"--no-cache has no effect: {request.name} is not a causal language model", "leave --no-cache out"
            )
        wanted = OnnxRequest(
            request.source,
            request.out,
            dtype=self.dtype,
            layout=self.layout,
            optimize=self.optimize,
            opset=self.opset,
            force=request.force,
            seen=request.seen,
            consent=request.consent,
        )
        wanted.check()
        if request.causal_lm and self.cache:
            return export_onnx(wanted, progress=request.progress)
        module = request.load()
        forward = ExportedForward(module, request.inputs(module), request.inner)
        held = str(getattr(request.config, "dtype", None) or "float32").removeprefix("torch.")
        return export_forward(wanted, forward, source_dtype=held, progress=request.progress)
