"""Check a written GGUF file: a reader finds what was to be written, and llama.cpp decodes what torch decodes."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from ...ir.errors import last_line
from ...runtime.child_process import start_python
from ...runtime.model.embeddings import vocabulary
from ...runtime.scratch import ScratchDirectory
from ...runtime.tolerances import GGUF_LOGITS_TOLERANCE
from ..verify import VerificationError
from .written_file import Contents, Entry

RUNTIME = "xllamacpp"
"""The package that holds llama.cpp."""

DECODED_TOKENS = 32
_FIRST_TOKENS = 8
_FIRST_SEED = 0

SAMPLE_TEXTS = (
    "Once upon a time there was a small fox who lived in a wood.",
    "In 1984, Tom's 3 friends paid $12.50; they'll pay 100000 more!",
    "a  b   c\n\nd\te",
    "Straße, naïve café, Ελλάδα, Москва, 日本語, 한국어",
)
"""Words, figures, contractions, spaces and ends of lines, and other scripts. Texts begin with no space."""


@dataclass(frozen=True)
class LlamaCppChecks:
    """What llama.cpp made of a file.

    Attributes:
        greedy_tokens: tokens that torch generated, without those of which llama.cpp tells nothing, because they end
            within a character.
        greedy_equal: those of them that llama.cpp found most likely too.
        worst_difference: the largest difference of the log-probability of such a token.
        shortfall: the largest log-probability of another token minus that of torch's, where they differ.
        texts: texts that were cut into tokens by both; 0 without a tokenizer.
        texts_equal: those with the same tokens.
    """

    greedy_tokens: int
    greedy_equal: int
    worst_difference: float
    shortfall: float
    texts: int
    texts_equal: int


def read_back(path: Path, contents: Contents, entries: Mapping[str, Entry]) -> None:
    """Compare what a fresh process reads from a file with what was to be written.

    Raises:
        VerificationError: it cannot read it, or finds something else.
    """
    report = _run("read_back.py", [str(path.absolute())], "", "the package gguf cannot read the written file")
    found = {name: Entry(tuple(shape), kind, digest) for name, (shape, kind, digest) in report["tensors"].items()}
    for name in sorted(found.keys() | entries.keys()):
        if found.get(name) != entries.get(name):
            raise VerificationError(
                f"the written file has {name} as {found.get(name)}, not as {entries.get(name)}", "write it again"
            )
    for key, value in {**contents.metadata, "general.architecture": contents.name}.items():
        if not _same(report["metadata"].get(key), value):
            raise VerificationError(f"the written file has another {key}", "write it again")


def _same(found: Any, value: Any) -> bool:
    if isinstance(value, bytes | tuple):
        value = list(value)
    if isinstance(value, float):
        return isinstance(found, float) and found == float(np.float32(value))
    if isinstance(value, list) and value and isinstance(value[0], float):
        return found == [float(np.float32(one)) for one in value]
    return bool(found == value) or (found is None and value in ([], ""))


def has_llama_cpp() -> bool:
    """Whether llama.cpp is there to try a file with."""
    return importlib.util.find_spec(RUNTIME) is not None


def check_llama_cpp(path: Path, model: Any, tokenizer: Any, context: int, *, exact: bool) -> LlamaCppChecks:
    """Decode with llama.cpp what torch decodes greedily.

    Args:
        path: the file.
        model: the ``PreTrainedModel`` that it is of.
        tokenizer: its tokenizer; None when the file has none.
        context: positions that the file may be used with.
        exact: whether the tokens must be equal: the file is in float32.

    Raises:
        VerificationError: llama.cpp cannot load or run the file, or computes something else.
    """
    prompt = np.random.default_rng(_FIRST_SEED).integers(0, vocabulary(model), _FIRST_TOKENS).tolist()
    wanted = max(min(DECODED_TOKENS, context - _FIRST_TOKENS), 1)
    expected, likely = _generated(model, prompt, wanted)
    texts = list(SAMPLE_TEXTS) if tokenizer is not None else []
    threads = torch.get_num_threads()
    request = {"file": str(path.absolute()), "threads": threads, "prompt": prompt, "expected": expected, "texts": texts}
    report = _run("llama_cpp_process.py", [], json.dumps(request), "llama.cpp cannot load or run the written file")
    told = [(step, *torch_said) for step, *torch_said in zip(report["steps"], expected, likely, strict=True) if step]
    if not told:
        raise VerificationError("llama.cpp decodes no token of this file that it tells of", "please report the model")
    shortfall = max(math.inf if ours is None else best - ours for (_, best, ours), *_ in told)
    worst = max(math.inf if ours is None else abs(ours - one) for (_, _, ours), _, one in told)
    cut = zip(report["tokens"], texts, strict=True)
    checks = LlamaCppChecks(
        greedy_tokens=len(told),
        greedy_equal=sum(token == one for (token, _, _), one, _ in told),
        worst_difference=worst,
        shortfall=shortfall,
        texts=len(texts),
        texts_equal=sum(ids == tokenizer(text)["input_ids"] for ids, text in cut),
    )
    if exact and not (worst <= GGUF_LOGITS_TOLERANCE and shortfall <= GGUF_LOGITS_TOLERANCE):
        raise VerificationError(
            f"llama.cpp computes something else: log-probabilities differ by {worst:.3g}, more than "
            f"{GGUF_LOGITS_TOLERANCE:g}, and {checks.greedy_equal} of {checks.greedy_tokens} greedy tokens are equal",
            "please report the model; --format onnx holds any",
        )
    return checks


def _generated(model: Any, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """The greedy tokens of torch, whatever its generation config says, and the log-probability of each."""
    kept = model.generation_config
    model.generation_config = GenerationConfig(pad_token_id=0)
    try:
        ids = torch.tensor([list(prompt)])
        with torch.no_grad():
            run = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, use_cache=True,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
    finally:
        model.generation_config = kept
    new = run.sequences[0, len(prompt) :].tolist()
    scores = [logits[0].double().log_softmax(-1) for logits in run.logits]
    return new, [float(score[token]) for score, token in zip(scores, new, strict=True)]


def _run(script: str, arguments: Sequence[str], request: str, failure: str) -> dict[str, Any]:
    """The JSON object on the last line of what a script beside this file prints."""
    command = [str(Path(__file__).parent / script), *arguments]
    with ScratchDirectory("fxprune-verify-") as scratch, start_python(command, scratch) as process:
        try:
            output, complaint = process.communicate(request)
        finally:
            process.kill()  # a signal that ends this process ends that one too
    if process.returncode != 0:
        raise VerificationError(f"{failure}: {_why(complaint) or process.returncode}", "please report the model")
    found: dict[str, Any] = json.loads(last_line(output))
    return found


_TELLING = ("error loading model:", "GGML_ASSERT")


def _why(complaint: str) -> str:
    """What a log tells of the reason: llama.cpp writes other lines after it."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    telling = [line[line.index(word) :] for line in lines for word in _TELLING if word in line]
    return (telling or lines or [""])[-1].removeprefix(_TELLING[0]).strip()
