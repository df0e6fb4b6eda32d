"""MLX on the CPU, by mlx-lm: its own model of the architecture, or the file that the directory names for it."""

import sys

import decoding
import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Decoder:
    def __init__(self, model: object) -> None:
        self.model = model

    def run(self, tokens: list[int], cache: object = None) -> np.ndarray:
        return np.array(self.model(mx.array([tokens]), cache=cache).astype(mx.float32))[0]

    def logits(self, tokens: list[int]) -> np.ndarray:
        return self.run(tokens)

    def generate(self, prompt: list[int], count: int) -> list[int]:
        cache = make_prompt_cache(self.model)
        found = [int(self.run(prompt, cache)[-1].argmax())]
        while len(found) < count:
            found.append(int(self.run(found[-1:], cache)[-1].argmax()))
        return found


def main() -> None:
    from importlib.metadata import version
    from pathlib import Path

    job = decoding.read_job()
    mx.set_default_device(mx.cpu)
    model, _ = load_model(Path(job["directory"]), trust_remote_code=job["own_code"])
    model.set_dtype(TYPES[job["type"]])
    model.eval()
    decoding.answer(job, Decoder(model), f"{version('mlx')}, mlx-lm {version('mlx-lm')}")


if __name__ == "__main__":
    sys.exit(main())
