"""Quantises a dense model and pruned directories of it with the tools that people use, and compares logits.

python benchmarks/deployment/quantise_after.py --model ../shared/models/llama-7m --text ../shared/text --out out/small

Packages: torchao, optimum-quanto, bitsandbytes, llmcompressor (with compressed-tensors and loguru), in the environment
or on PYTHONPATH; what is missing is said, and left out. Bytes are counted: bits of the weights of linear layers with
their scales (16 bits each), two bytes for all other parameters. The perplexity is that of the first windows of 128
tokens of the WikiText-2 test text.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

GROUP = 32
SCALE_BITS = 16


def torchao(bits: int, group: int | None) -> Callable[[nn.Module], nn.Module]:
    """Weights only, symmetric, one scale for each group of columns or, without a group, for each row."""

    def run(model: nn.Module) -> nn.Module:
        from torchao.quantization import IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerAxis, PerGroup

        granularity = PerAxis(0) if group is None else PerGroup(group)
        quantize_(model, IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=granularity))
        return model

    return run


def quanto(bits: int) -> Callable[[nn.Module], nn.Module]:
    """Quanto's weights: one scale a row for int8, groups of its own choice for int4."""

    def run(model: nn.Module) -> nn.Module:
        from optimum.quanto import freeze, qint4, qint8, quantize

        quantize(model, weights=qint8 if bits == 8 else qint4, exclude="lm_head")
        freeze(model)
        return model

    return run


def bitsandbytes(model: nn.Module) -> nn.Module:
    """NF4 in blocks of 64 weights."""
    import bitsandbytes as bnb

    for path, linear in [(path, one) for path, one in model.named_modules() if isinstance(one, nn.Linear)]:
        if path == "lm_head":
            continue
        four = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=linear.bias is not None, quant_type="nf4",
            compute_dtype=torch.float32,
        )  # fmt: skip
        four.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, four.to("cpu"))
    return model


def gptq(windows: torch.Tensor) -> Callable[[nn.Module], nn.Module]:
    """GPTQ by llm-compressor: int4 in groups of 32, calibrated on windows ``[N, L]``."""

    def run(model: nn.Module) -> nn.Module:
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import GPTQModifier

        weights = QuantizationArgs(num_bits=4, strategy="group", group_size=GROUP, symmetric=True)
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        rows = {"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()}
        oneshot(
            model=model, dataset=Dataset.from_dict(rows), recipe=GPTQModifier(config_groups=groups, ignore=["lm_head"]),
            num_calibration_samples=len(windows), max_seq_length=windows.shape[1],
        )  # fmt: skip
        return model

    return run


TOOLS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torchao int8": torchao(8, None), "torchao int4, groups of 32": torchao(4, GROUP),
    "quanto int8": quanto(8), "quanto int4": quanto(4), "bitsandbytes nf4": bitsandbytes,
}  # fmt: skip


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Those that are quantised: all but the output head, which is tied to the embedding."""
    return [one for path, one in model.named_modules() if isinstance(one, nn.Linear) and path != "lm_head"]


def quantised_bytes(model: nn.Module, bits: int, group: int | None) -> int:
    """Bytes of the checkpoint."""
    inside = linear_layers(model)
    weights = sum(one.weight.numel() for one in inside)
    scales = sum(one.weight.numel() // (group or one.in_features) for one in inside)
    others = sum(parameter.numel() for parameter in model.parameters()) - weights
    return (weights * bits + scales * SCALE_BITS) // 8 + 2 * others


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype="float32", trust_remote_code=True).eval()


class Texts:
    """Windows to measure on."""

    def __init__(self, model: Path, text: Path, windows: int) -> None:
        from transformers import AutoTokenizer

        from fxprune.tracer.texts.corpus import load_text

        tokenizer = AutoTokenizer.from_pretrained(model)
        self.calibration = load_text(str(text / "wikitext2-calib.txt"), tokenizer).windows(128, 64)
        self.windows = load_text(str(text / "wikitext2-eval.txt"), tokenizer).windows(128, windows)

    @torch.no_grad()
    def logits(self, model: nn.Module) -> torch.Tensor:
        return torch.cat([model(input_ids=part, use_cache=False).logits.float() for part in self.windows.split(8)])

    def losses(self, logits: torch.Tensor) -> torch.Tensor:
        """Mean loss of every window, float64 ``[N]``."""
        each = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), self.windows[:, 1:], reduction="none")
        return each.double().mean(1)


def compared(name: str, path: Path, texts: Texts) -> None:
    """A line for every tool: how far logits move, and the loss, against the same directory in float32."""
    plain = load(path)
    reference = texts.logits(plain)
    own = texts.losses(reference)
    print(f"| {name} | float32 | | {own.mean().exp():.2f} | |")
    tools = TOOLS | {"llm-compressor GPTQ, int4, groups of 32": gptq(texts.calibration)}
    for tool, run in tools.items():
        try:
            logits = texts.logits(run(copy.deepcopy(plain)))
        except Exception as problem:  # whatever a tool raises is what the table says of it
            print(f"| {name} | {tool} | {type(problem).__name__}: {str(problem)[:90]} | | |", flush=True)
            continue
        far = (logits - reference).norm() / (reference - reference.mean(-1, keepdim=True)).norm()
        more = (losses := texts.losses(logits)) - own
        print(
            f"| {name} | {tool} | {far:.4f} | {losses.mean().exp():.2f} | "
            f"{1000 * more.mean():.1f} ± {1000 * more.std() / len(more) ** 0.5:.1f} |",
            flush=True,
        )


def pruned(model: Path, text: Path, out: Path, target: str) -> Path:
    """The directory of a pruned model, made once."""
    import fxprune

    if not out.exists():
        steps = f"obs{{target={target},by=global,runtime=torchao-int4,samples=64,tolerance=0.02}},compensate"
        fxprune.apply(model, steps, calib=text / "wikitext2-calib.txt", out=out)
    return out


def equal_bytes(model: Path, text: Path, out: Path, texts: Texts) -> None:
    """Fewer bits for the dense model, beside int4 in groups of 32 for one that is pruned to the same bytes."""
    dense = load(model)
    own = texts.losses(texts.logits(dense))
    total = sum(parameter.numel() for parameter in dense.parameters())
    inside = sum(one.weight.numel() for one in linear_layers(dense))
    print(f"| dense, float16 | {2 * total:,} | {own.mean().exp():.2f} | | |")
    base = texts.losses(texts.logits(torchao(4, GROUP)(copy.deepcopy(dense))))
    print(f"| dense, int4 in groups of 32 | {quantised_bytes(dense, 4, GROUP):,} | {base.mean().exp():.2f} | | |")
    for bits, group in ((4, None), (3, GROUP)):
        size = quantised_bytes(dense, bits, group)
        few = texts.losses(texts.logits(torchao(bits, group)(copy.deepcopy(dense))))
        where = "in groups of 32" if group else "one scale a row"
        print(f"| dense, int{bits} {where} | {size:,} | {few.mean().exp():.2f} | |", flush=True)
        kept = (size - 2 * (total - inside)) / ((4 + SCALE_BITS / GROUP) / 8)  # of the linear layers' weights
        share = (kept + total - inside) / total
        small = load(pruned(model, text, out / f"kept-{share:.4f}", f"params:{share:.4f}"))
        size = quantised_bytes(small, 4, GROUP)
        found = texts.losses(texts.logits(torchao(4, GROUP)(small)))
        more = found - few
        print(
            f"| pruned to {share:.3f}, int4 in groups of 32 | {size:,} | {found.mean().exp():.2f} | "
            f"{1000 * more.mean():.0f} ± {1000 * more.std() / len(more) ** 0.5:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True, type=Path, help="a Llama-like model directory")
    parser.add_argument("--text", required=True, type=Path, help="folder of wikitext2-calib.txt and wikitext2-eval.txt")
    parser.add_argument("--out", required=True, type=Path, help="folder for the pruned directories")
    parser.add_argument("--windows", type=int, default=60, help="evaluation windows")
    parser.add_argument("--part", choices=("tools", "bytes"), nargs="*", default=("tools", "bytes"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = Texts(options.model, options.text, options.windows)
    began = time.process_time()
    if "tools" in options.part:
        compared("dense", options.model, texts)
        compared("pruned", pruned(options.model, options.text, options.out / "kept-0.8", "params:0.8"), texts)
    if "bytes" in options.part:
        equal_bytes(options.model, options.text, options.out, texts)
    print(f"{time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
