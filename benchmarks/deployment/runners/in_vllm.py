"""vLLM on the CPU: its own model of the architecture for a plain configuration, else its transformers backend."""

import json
import os
import sys
from pathlib import Path

import decoding

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def per_layer(folder: str) -> dict[str, dict[str, int]]:
    """The heads of each layer, from the shapes of its maps; nothing where all have those of the configuration."""
    config = json.loads(Path(folder, "config.json").read_text())
    shapes, size = config.get("fxprune", {}).get("shapes", {}), config["head_dim"]
    maps = {"num_attention_heads": "q_proj", "num_key_value_heads": "k_proj"}
    found: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        for field, part in maps.items():
            if name.endswith(f"self_attn.{part}.weight"):
                found.setdefault(name.split(".layers.")[1].split(".")[0], {})[field] = shape[0] // size
    return found


def main() -> None:
    job = decoding.read_job()
    import vllm

    options = {"model_impl": "transformers", "trust_remote_code": True} if job["own_code"] else {}
    if job["own_code"] and (layers := per_layer(job["directory"])):
        options["hf_overrides"] = {"per_layer_config": layers, "allow_global_per_layer_attribute_access": True}
    model = vllm.LLM(
        job["directory"], dtype=job["type"], enforce_eager=True, max_model_len=128, max_num_seqs=1,
        enable_prefix_caching=False, **options,
    )  # fmt: skip
    prompt, expected = job["prompt"], job["expected"]
    greedy = vllm.SamplingParams(temperature=0, max_tokens=len(expected), ignore_eos=True, detokenize=False)
    (decoded,) = model.generate({"prompt_token_ids": prompt}, greedy)
    found = decoded.outputs[0]
    # Tokens alone: on a CPU, log-probabilities wait for a compiler for minutes.
    decoding.print_answer(vllm.__version__, list(found.token_ids), [])


if __name__ == "__main__":
    sys.exit(main())
