"""What the scripts beside this one share: a job comes as JSON on standard input, the last line of output answers it.

A job has ``directory``, the model; ``own_code``, whether its modelling file may run; ``prompt`` and ``expected``, token
ids; ``type``, how the runtime shall hold or compute; ``onnx`` and ``precision`` for OpenVINO; ``scratch``, an empty
directory. The answer has ``version``; ``tokens``, as many as are expected, decoded greedily; and ``logprobs``, the
log-probability of every expected token after those before it, or none. These scripts run without fxprune.
"""

import json
import sys
from typing import Any

import numpy as np


def read_job() -> dict[str, Any]:
    """The job of this process; importing fxprune is an error from here on."""
    sys.modules["fxprune"] = None  # type: ignore[assignment]
    return json.load(sys.stdin)


def answer(job: dict[str, Any], decoder: Any, version: str) -> None:
    """Decode, and print what came out.

    Args:
        job: as above.
        decoder: has ``logits(tokens)``, of all positions, and ``generate(prompt, count)``, with a cache.
        version: of the runtime.
    """
    prompt, expected = job["prompt"], job["expected"]
    logits = np.asarray(decoder.logits([*prompt, *expected[:-1]]), np.float64)[len(prompt) - 1 :]
    print_answer(version, decoder.generate(prompt, len(expected)), chosen(logits, expected))


def chosen(logits: Any, expected: list[int]) -> list[float]:
    """The log-probabilities of tokens, each from its row of logits."""
    logits = logits - logits.max(-1, keepdims=True)
    found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return [float(row[token]) for row, token in zip(found, expected, strict=True)]


def print_answer(version: str, tokens: list[int], logprobs: list[float]) -> None:
    print("\n" + json.dumps({"version": version, "tokens": [int(one) for one in tokens], "logprobs": logprobs}))


class Graph:
    """A compiled graph of OpenVINO with the names of fxprune's ONNX decoders."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.inputs = {port.get_any_name(): port for port in compiled.inputs}
        self.outputs = {name: at for at, port in enumerate(compiled.outputs) for name in port.get_names()}
        self.past = [name for name in self.inputs if name.startswith("past_key_values.")]

    def step(self, tokens: list[int], cache: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        before = next(iter(cache.values())).shape[2]
        after = before + len(tokens)
        fed = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, after), np.int64),
            "position_ids": np.arange(before, after, dtype=np.int64)[None],
            **cache,
        }
        found = self.compiled({name: fed[name] for name in self.inputs})
        cache = {name: found[self.outputs[name.replace("past_key_values", "present")]] for name in self.past}
        return found[self.outputs["logits"]][0], cache

    def empty(self) -> dict[str, Any]:
        shapes = {name: self.inputs[name].get_partial_shape() for name in self.past}
        return {
            name: np.zeros((1, shape[1].get_length(), 0, shape[3].get_length()), np.float32)
            for name, shape in shapes.items()
        }

    def logits(self, tokens: list[int]) -> Any:
        return self.step(tokens, self.empty())[0]

    def generate(self, prompt: list[int], count: int) -> list[int]:
        logits, cache = self.step(prompt, self.empty())
        found = [int(logits[-1].argmax())]
        while len(found) < count:
            logits, cache = self.step(found[-1:], cache)
            found.append(int(logits[-1].argmax()))
        return found
