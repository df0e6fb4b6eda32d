"""A script that loads model directories with transformers alone and reports what they compute. It is never imported.

It runs in a Python process of its own, in which fxprune cannot be imported. When transformers has been imported, it
reads a JSON list of jobs from standard input. A job has ``folder``, ``inputs`` (a safetensors file with the arguments
of forward), ``auto`` (the Auto class), ``keywords`` (by which transformers is told whether code in the directory may
run), ``pickle`` (whether pickles may be read), ``written`` (name -> sha256 of the code that fxprune wrote there, which
is compared first), ``logits`` (the file to write) and ``outputs`` (keys of the outputs to write; the first output when
there are none). For a job without inputs, it builds the model on the meta device and compares only names and shapes.
The last line of its output is a JSON list with one report per job.
"""

import atexit
import gc
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

gc.set_threshold(100_000)  # imports make many objects that are never freed
atexit.register(gc.freeze)
sys.modules["fxprune"] = None  # type: ignore[assignment]  # importing it is an error from here on

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

for heavy in ("AutoModelForCausalLM", "GenerationMixin"):  # transformers imports a class on first use
    getattr(transformers, heavy)

load = torch.load
NEW_TOKENS = 8
PROMPT = 8
FIRST_TOKENS = ("bos_token_id", "decoder_start_token_id")


def check(job: dict[str, Any]) -> dict[str, Any]:
    """Load one directory, run the forward of the model, and decode some tokens."""
    inputs = load_file(job["inputs"])
    # A class may read one besides its weights.
    torch.load = load if job.get("pickle") else no_pickle  # type: ignore[assignment]
    model, info = getattr(transformers, job["auto"]).from_pretrained(
        job["folder"], dtype=torch.float32, output_loading_info=True, **keywords(job)
    )
    model.eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        output, refused = forward(model, inputs)
    leaves = torch.utils._pytree.tree_leaves([output[key] for key in job["outputs"]] or output[0])
    found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    save_file({str(number): tensor.clone().contiguous() for number, tensor in enumerate(found)}, job["logits"])
    return {
        "keys": {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")},
        "not_finite": [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()],
        "generate": attempt(model, inputs) if "input_ids" in inputs and model.can_generate() else None,
        "refuses_cache": refused,
    }


def no_pickle(file: Any, *_: object, **__: object) -> NoReturn:
    """In place of ``torch.load``."""
    raise SystemExit(f"{file} is a pickle")


def forward(model: transformers.PreTrainedModel, inputs: dict[str, torch.Tensor]) -> tuple[Any, str]:
    """The outputs of a model; without a cache for one that cannot run with the cache that it makes itself, and why that
    is. Such a model cannot decode, which is found with what it decodes."""
    try:
        return model(**inputs), ""
    except Exception as error:  # whatever a model's own code raises
        if "input_ids" not in inputs or not model.can_generate():
            raise
        output = model(**inputs, use_cache=False)
        return output, f"{type(error).__name__}: {error}".splitlines()[0]


def check_shapes(job: dict[str, Any]) -> dict[str, Any]:
    """Compare names and shapes in the files with those that the configuration describes. No values are read."""
    config = transformers.AutoConfig.from_pretrained(job["folder"], **keywords(job))
    with torch.device("meta"):
        auto = getattr(transformers, job["auto"])
        model = auto.from_config(config, **keywords(job))
    expected = model.state_dict(keep_vars=True)
    held: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(job["folder"]).glob("model*.safetensors")):
        with safe_open(file, framework="numpy") as opened:  # torch would map all of it
            held |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    present = {id(expected[name]) for name in held.keys() & expected.keys()}  # a tied tensor is stored once
    keys = {
        "missing_keys": sorted(name for name, tensor in expected.items() if id(tensor) not in present),
        "unexpected_keys": sorted(held.keys() - expected.keys()),
        "mismatched_keys": sorted(n for n in held.keys() & expected.keys() if held[n] != tuple(expected[n].shape)),
    }
    return {"keys": keys, "not_finite": [], "generate": None}


def keywords(job: dict[str, Any]) -> dict[str, Any]:
    """What transformers is told about code in the directory; an error when it is no longer what fxprune wrote."""
    for name, digest in job["written"].items():
        if hashlib.sha256(Path(job["folder"], name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{name} is not the file that fxprune wrote")
    return dict(job["keywords"])


def attempt(model: transformers.PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The result of :func:`decoded`, or the reason why the model cannot decode."""
    try:
        return decoded(model, inputs)
    except Exception as error:  # whatever a model's own code raises
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def generate_as_usual(config: transformers.GenerationConfig) -> None:
    """Take back how the model's directory says that it should generate, which could make its tokens no matter of the
    weights, or no tokens at all. What it says beside that stays: the model's own code may ask for it."""
    for name, value in vars(transformers.GenerationConfig()).items():
        if name not in FIRST_TOKENS:
            setattr(config, name, value)


def decoded(model: transformers.PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Greedy tokens with and without a cache, and how much their scores differ where the tokens first do."""
    prompt = inputs["input_ids"][:1, :PROMPT]
    # In some models padding tokens get no position. A decoded padding token would change positions with a cache only.
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    generate_as_usual(model.generation_config)
    runs = {}
    for name, use_cache in (("cached", True), ("uncached", False)):
        runs[name] = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=use_cache, pad_token_id=0,
                output_scores=True, return_dict_in_generate=True,
                suppress_tokens=None if padding is None else [padding],
            ),
        )  # fmt: skip
    start = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    new = {name: run.sequences[0, start:].tolist() for name, run in runs.items()}
    gap = 0.0
    for step, tokens in enumerate(zip(new["cached"], new["uncached"], strict=True)):
        if tokens[0] != tokens[1]:
            scores = runs["uncached"].scores[step][0]
            gap = float((scores[tokens[1]] - scores[tokens[0]]) / scores.abs().max())
            break
    return {**new, "gap": gap}


jobs = json.loads(sys.stdin.read() or "[]")
print(json.dumps([check(job) if job["inputs"] else check_shapes(job) for job in jobs]))
