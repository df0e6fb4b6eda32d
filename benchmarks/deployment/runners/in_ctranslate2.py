"""CTranslate2, by its own converter of transformers models."""

import json
import sys
from pathlib import Path

import ctranslate2
import decoding
import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer


class Converter(ctranslate2.converters.TransformersConverter):
    """Loads by the Auto class, which knows the modelling file of a free form; the original one ignores it, and fills
    what a dropped part lacks with random numbers."""

    def load_model(self, model_class: type, model_name_or_path: str, **options: object) -> object:
        del model_class
        return AutoModelForCausalLM.from_pretrained(model_name_or_path, **options)


class Decoder:
    def __init__(self, folder: str, kind: str, names: list[str]) -> None:
        self.generator = ctranslate2.Generator(
            folder, device="cpu", compute_type=kind, inter_threads=1, intra_threads=1
        )
        self.names = names

    def logits(self, tokens: list[int]) -> np.ndarray:
        found = self.generator.forward_batch([[self.names[one] for one in tokens]])
        return np.array(found)[0]

    def generate(self, prompt: list[int], count: int) -> list[int]:
        found = self.generator.generate_batch(
            [[self.names[one] for one in prompt]], max_length=count, min_length=count, end_token=[],
            include_prompt_in_result=False, sampling_topk=1,
        )  # fmt: skip
        return list(found[0].sequences_ids[0])


def name_unknown(file: Path) -> None:
    """A Mistral without an unknown token is written with null as its name, and cannot be loaded; a Llama gets ""."""
    config = json.loads(file.read_text())
    if config.get("unk_token", "") is None:
        file.write_text(json.dumps({**config, "unk_token": ""}))


def main() -> None:
    job = decoding.read_job()
    folder = str(Path(job["scratch"]) / "converted")
    converter = Converter(job["directory"], trust_remote_code=job["own_code"])
    converter.convert(folder)
    name_unknown(Path(folder, "config.json"))
    tokenizer = AutoTokenizer.from_pretrained(job["directory"])
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    decoding.answer(job, Decoder(folder, job["type"], names), ctranslate2.__version__)


if __name__ == "__main__":
    sys.exit(main())
