"""gguf: the exporter for llama.cpp and what is built on it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...ir.errors import RequestError
from ...ir.extras import EXTRAS
from ...ir.options import option
from ...runtime.model_directory.tokenizer import read_tokenizer
from ..atomic_directory import check_room
from ..exporter import ExportRequest, numbered
from ..placed_file import placed_file
from .architectures import OTHER_FORMAT, find_architecture
from .check import LlamaCppChecks, check_llama_cpp, has_llama_cpp, read_back
from .contents import describe
from .vocabulary import WITHOUT, Vocabulary, read_vocabulary
from .written_file import BYTES_PER_WEIGHT, TYPES, Entry, write_contents

_NOT_RUN = {
    "absent": "not run in llama.cpp: pip install xllamacpp lets the export do that",
    "ids": "not run in llama.cpp, whose server wants a tokenizer",
}
"""Why a file was not tried."""


@dataclass(frozen=True, kw_only=True)
class GgufReport:
    """What was written.

    Attributes:
        path: the file.
        bytes: its size.
        dtype: of its matrices, as asked for.
        architecture: what the file names.
        per_layer: whether it lists widths layer by layer.
        zeros: weights that were added.
        tensors: number of tensors by type.
        notes: what a user should know, in words.
        llama_cpp: what llama.cpp made of it; None when it was not run.
        not_run: why it was not run; "" when it was.
    """

    path: Path
    bytes: int
    dtype: str
    architecture: str
    per_layer: bool
    zeros: int
    tensors: dict[str, int]
    notes: tuple[str, ...] = ()
    llama_cpp: LlamaCppChecks | None = None
    not_run: str = ""
    format: str = field(default="gguf", init=False)

    @property
    def summary(self) -> str:
        """What was made, and how it was checked."""
        made = f"{self.dtype}, architecture {self.architecture}{' with widths per layer' if self.per_layer else ''}"
        checks = self.llama_cpp
        equal = f"{checks.greedy_equal} of {checks.greedy_tokens} greedy tokens equal in llama.cpp" if checks else ""
        return "; ".join((made, equal or self.not_run, *self.notes))

    @property
    def measured(self) -> dict[str, dict[str, str]]:
        """How far llama.cpp is from torch."""
        checks = self.llama_cpp
        if checks is None:
            return {}
        found = {"log-probability of greedy tokens, largest difference": f"{checks.worst_difference:.2g}"}
        if checks.texts:
            found["texts with equal tokens"] = f"{checks.texts_equal} of {checks.texts}"
        return {"in llama.cpp": found}

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """One file for llama.cpp, with the tokenizer; widths may differ by layer where its code allows it."""

    name: ClassVar[str] = "gguf"
    packages: ClassVar[tuple[str, ...]] = EXTRAS["gguf"]
    file_begins: ClassVar[bytes] = b"GGUF"

    dtype: str = option(
        "float32", f"of matrices: {', '.join(TYPES)}; all others are made by llama.cpp's llama-quantize"
    )
    pad: bool = option(False, "write zeros in the place of what was removed, where llama.cpp takes no other widths")
    tokenizer: bool = option(True, "whether the file has the tokenizer; without it, it takes token ids only")

    def check(self) -> None:
        """Refuse a type that only llama.cpp itself writes, and say how."""
        if self.dtype not in TYPES:
            raise RequestError(
                f"dtype {self.dtype!r} is not written here",
                f"choose from {', '.join(TYPES)}; for others export float32 or float16, then run llama.cpp's own tool: "
                "llama-quantize MODEL.gguf SMALLER.gguf Q4_K_M",
            )

    def export(self, request: ExportRequest) -> GgufReport:
        """Write a GGUF file."""
        import gguf

        config = request.config.get_text_config()
        if not request.causal_lm:
            raise RequestError(
                f"{request.name} is no causal language model, and this format is for these", OTHER_FORMAT
            )
        own = getattr(request.config, "auto_map", None) and "shapes" not in getattr(request.config, "fxprune", {})
        if own or "own_class" in getattr(request.config, "fxprune", {}):
            raise RequestError(f"{request.name} brings its own code, which llama.cpp cannot run", OTHER_FORMAT)
        row = find_architecture(config, request.name)
        tokenizer = self._tokenizer(request)
        model: Any = request.load()
        rows = int(model.get_input_embeddings().weight.shape[0])
        vocabulary = read_vocabulary(tokenizer, rows) if tokenizer is not None else Vocabulary.none(rows)
        runs = has_llama_cpp() and tokenizer is not None
        say = numbered(request.progress, 4 if runs else 3)
        say("giving the tensors the names and the order of llama.cpp")
        described = describe(model, row, vocabulary.metadata, gguf, padded=self.pad, name=request.name)
        check_room(request.out, math.ceil(described.contents.weights * BYTES_PER_WEIGHT[self.dtype]))
        if request.seen is None:
            raise AssertionError("an exporter of one file is given what was at its place")
        with placed_file(request.out, request.seen) as path:
            say("writing the file")
            entries = write_contents(path, described.contents, self.dtype, gguf)
            say("reading it in a fresh process")
            read_back(path, described.contents, entries)
            checks = None
            if runs:
                say("decoding in llama.cpp")
                exact = self.dtype == "float32"
                checks = check_llama_cpp(path, model, tokenizer, described.context, exact=exact)
            size = path.stat().st_size
        notes = [*vocabulary.notes, described.shortened, *self._rounded(entries), *_said(described.form.zeros)]
        return GgufReport(
            path=request.out.resolve(),
            bytes=size,
            dtype=self.dtype,
            architecture=described.contents.name,
            per_layer=described.form.per_layer,
            zeros=described.form.zeros,
            tensors=_counted(entries),
            notes=tuple(filter(None, notes)),
            llama_cpp=checks,
            not_run="" if checks else _NOT_RUN["absent" if tokenizer is not None else "ids"],
        )

    def _tokenizer(self, request: ExportRequest) -> Any:
        if not self.tokenizer:
            return None
        return read_tokenizer(request.source, WITHOUT, **request.consent.keywords(request.source))

    def _rounded(self, entries: dict[str, Entry]) -> list[str]:
        """What is not of the type that was asked for, though it is a matrix."""
        wanted = TYPES[self.dtype]
        others = [name for name, entry in entries.items() if entry.type not in (wanted, "F32")]
        if not others:
            return []
        width = entries[others[0]].shape[-1]
        return [
            f"{len(others)} matrices are float16, such as {others[0]}, whose rows of {width} are no multiple of 32 "
            "(prune with --multiple-of 32)"
        ]


def _said(zeros: int) -> list[str]:
    return [f"{zeros:,} zeros were added"] if zeros else []


def _counted(entries: dict[str, Entry]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in entries.values():
        counts[entry.type] = counts.get(entry.type, 0) + 1
    return dict(sorted(counts.items()))
