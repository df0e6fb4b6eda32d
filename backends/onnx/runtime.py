"""Decode with ONNX Runtime, from a directory that ``export_onnx`` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from ...ir.errors import FxpruneError, RequestError, first_line

TokenArray = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Cache = dict[str, npt.NDArray[np.floating[Any]]]

MODEL_FILE = "model.onnx"
EXPORT_AGAIN = "export the model again"

_FED = ("input_ids", "attention_mask", "position_ids")
_LARGEST = 1 << 31
"""Of a dimension: none of a real model comes near it."""


def open_session(file: Path, provider: str, threads: int | None = None) -> Any:
    """Open a graph in ONNX Runtime.

    Args:
        file: the ``.onnx`` file.
        provider: the execution provider; operators that it does not have run on the CPU.
        threads: threads within one operator; all cores of the machine when None.

    Raises:
        FxpruneError: ONNX Runtime cannot open it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: other messages would appear on stderr between our own
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = list(dict.fromkeys([provider, "CPUExecutionProvider"]))
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    # onnxruntime has an exception class for each status code, without a common base.
    except Exception as error:
        raise FxpruneError(
            f"ONNX Runtime cannot open {file}: {first_line(error)}",
            "if an operator is missing, export again with `--optimize none`, or use a machine with the provider that "
            "the graph was optimised for",
        ) from error


class OnnxDecoder:
    """A causal language model in ONNX Runtime, called with token ids.

    Args:
        path: a directory with a graph that has a key-value cache, with the names in :mod:`.names`.
        file_name: the file of the graph in it.
        provider, threads: as for :func:`open_session`.

    Raises:
        RequestError: the file does not exist, or the graph has other inputs or outputs.
        FxpruneError: ONNX Runtime cannot open it.
    """

    def __init__(
        self,
        path: Path,
        *,
        file_name: str = MODEL_FILE,
        provider: str = "CPUExecutionProvider",
        threads: int | None = None,
    ) -> None:
        self.file = file = Path(path) / file_name
        if not file.is_file():
            raise RequestError(f"{path} has no {file_name}", "give a directory that `fxprune export` wrote")
        self._session = open_session(file, provider, threads)
        self.inputs: dict[str, list[int | str]] = {item.name: item.shape for item in self._session.get_inputs()}
        self.outputs: list[str] = [item.name for item in self._session.get_outputs()]
        self._past = [name for name in self.inputs if name.startswith("past_key_values.")]
        types = {item.name: item.type for item in self._session.get_inputs()}
        self._cache_type = np.float16 if self._past and types[self._past[0]] == "tensor(float16)" else np.float32
        if not self._past or "input_ids" not in self.inputs or "logits" not in self.outputs:
            raise RequestError(
                f"{file} is not a decoder with a key-value cache; its inputs are {', '.join(self.inputs)}",
                "export a causal language model, without --no-cache",
            )
        self._check_interface()

    def _check_interface(self) -> None:
        """Refuse a graph that cannot be called as :meth:`step` does, before it runs."""
        wrong = [f"takes {name!r}" for name in self.inputs if name not in (*_FED, *self._past)]
        for name in self._past:
            shape = self.inputs[name]
            if len(shape) != 4 or not all(_is_size(size) for size in shape[1::2]):
                wrong.append(f"takes {name!r} of shape {shape}, where [batch, kv heads, past, head size] belongs")
            if _present(name) not in self.outputs:
                wrong.append(f"takes {name!r} and does not return {_present(name)!r}")
        if wrong:
            raise RequestError(f"{self.file} is not a decoder that fxprune wrote: it {wrong[0]}", EXPORT_AGAIN)

    def empty_cache(self, batch: int) -> Cache:
        """An empty cache for prefill: tensors ``[batch, kv heads, 0, head size]`` for every layer."""
        return {
            name: np.zeros((batch, int(self.inputs[name][1]), 0, int(self.inputs[name][3])), self._cache_type)
            for name in self._past
        }

    def step(
        self, input_ids: TokenArray, cache: Cache, *, attention_mask: TokenArray | None = None
    ) -> tuple[Floats, Cache]:
        """Run new tokens after the tokens in the cache.

        Args:
            input_ids: ``[batch, sequence]``.
            cache: the result of :meth:`empty_cache` or of an earlier step.
            attention_mask: ``[batch, past + sequence]``, 0 for padding tokens; all ones when None. Padding tokens get
                no position.

        Returns:
            Logits ``[batch, sequence, vocabulary]`` and the cache with the new tokens appended.

        Raises:
            FxpruneError: ONNX Runtime cannot run the graph, or it returns something else.
        """
        batch, sequence = input_ids.shape
        total = cache[self._past[0]].shape[2] + sequence
        mask = np.ones((batch, total), np.int64) if attention_mask is None else attention_mask
        feed = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": token_positions(mask)[:, -sequence:],
            **cache,
        }
        named = self._run({name: feed[name] for name in self.inputs})
        logits, after = named["logits"], {name: named[_present(name)] for name in self._past}
        self._check_result(logits, input_ids)
        for name, found in after.items():
            wanted = (batch, self.inputs[name][1], total, self.inputs[name][3])
            if getattr(found, "shape", None) != wanted or found.dtype != self._cache_type:
                raise self._wrong_result(_present(name), found, f"{np.dtype(self._cache_type)} of shape {wanted}")
        return logits.astype(np.float32, copy=False), after

    def _run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        try:
            return dict(zip(self.outputs, self._session.run(self.outputs, feed), strict=True))
        except MemoryError:
            raise
        # As in open_session.
        except Exception as error:
            raise FxpruneError(f"ONNX Runtime cannot run {self.file}: {first_line(error)}", EXPORT_AGAIN) from error

    def _check_result(self, logits: Any, input_ids: TokenArray) -> None:
        shape: Sequence[int] = getattr(logits, "shape", ())
        if shape[:-1] != input_ids.shape or shape[-1] <= input_ids.max(initial=0) or logits.dtype.kind != "f":
            raise self._wrong_result("logits", logits, f"{[*input_ids.shape]} with a number for each known token")

    def _wrong_result(self, name: str, found: Any, wanted: str) -> FxpruneError:
        kind = f"{getattr(found, 'dtype', type(found).__name__)} of shape {getattr(found, 'shape', None)}"
        return FxpruneError(f"{self.file} returns {name!r} as {kind}, not {wanted}", EXPORT_AGAIN)

    def logits(self, input_ids: TokenArray | Sequence[Sequence[int]]) -> Floats:
        """Logits ``[batch, sequence, vocabulary]`` of unpadded token ids ``[batch, sequence]``."""
        tokens = np.asarray(input_ids, np.int64)
        return self.step(tokens, self.empty_cache(len(tokens)))[0]

    def generate(self, input_ids: Sequence[int] | TokenArray, n: int) -> list[int]:
        """Continue one prompt greedily by exactly ``n`` tokens; an end token does not stop it.

        Args:
            input_ids: the token ids of the prompt, ``[sequence]`` or ``[1, sequence]``.
            n: number of tokens to generate.

        Returns:
            The new tokens, without the prompt.

        Raises:
            RequestError: the prompt is empty.
        """
        tokens = np.asarray(input_ids, np.int64).reshape(1, -1)
        if not tokens.size:
            raise RequestError("the prompt is empty", "give at least one token id")
        cache = self.empty_cache(1)
        new: list[int] = []
        while len(new) < n:
            logits, cache = self.step(tokens, cache)
            new.append(int(logits[0, -1].argmax()))
            tokens = np.array([[new[-1]]], np.int64)
        return new


def _is_size(size: int | str) -> bool:
    return isinstance(size, int) and 0 < size < _LARGEST


def _present(name: str) -> str:
    """The output that an input of the cache becomes."""
    return name.replace("past_key_values", "present")


def token_positions(attention_mask: TokenArray) -> TokenArray:
    """The position of every token, ``[batch, length]``: the number of tokens before it that are not padding. Padding
    at the start gets 0."""
    positions: TokenArray = np.maximum(attention_mask.cumsum(-1) - 1, 0)
    return positions
