"""OpenVINO, from ``torch.export`` of the model as transformers loads it, with a key-value cache."""

import sys

import decoding
import openvino
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

BATCH, SEQUENCE, PAST = 2, 3, 5
"""Of the traced call: all differ, and none is 0 or 1, which would be constant."""


def filled(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    """A layer of a cache. Made by its own ``update``, it would join them to an empty vector, which OpenVINO cannot."""
    layer = DynamicLayer()
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    layer.dtype, layer.device = keys.dtype, keys.device
    return layer


class WithCache(torch.nn.Module):
    """A decoder that takes and returns keys and values as plain tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> list[Tensor]:
        cache = DynamicCache()
        cache.layers = [filled(*pair) for pair in zip(past[::2], past[1::2], strict=True)]
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache
        )
        return [found.logits, *(each for layer in found.past_key_values.layers for each in (layer.keys, layer.values))]


def empty_past(model: torch.nn.Module) -> list[torch.Tensor]:
    """What each layer keeps of two samples and some tokens; as a run shows it, since layers may differ."""
    with torch.no_grad():
        cache = model(input_ids=torch.ones(BATCH, PAST, dtype=torch.int64), use_cache=True).past_key_values
    return [each for layer in cache.layers for each in (layer.keys, layer.values)]


def main() -> None:
    job = decoding.read_job()
    model = AutoModelForCausalLM.from_pretrained(
        job["directory"], dtype=torch.float32, trust_remote_code=job["own_code"], attn_implementation="sdpa"
    ).eval()
    past = empty_past(model)
    inputs = (
        torch.ones(BATCH, SEQUENCE, dtype=torch.int64),
        torch.ones(BATCH, PAST + SEQUENCE, dtype=torch.int64),
        torch.arange(PAST, PAST + SEQUENCE).repeat(BATCH, 1),
        past,
    )
    auto = torch.export.Dim.DYNAMIC
    shapes = ({0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto, 1: auto}, [{0: auto, 2: auto}] * len(past))
    with torch.no_grad():
        program = torch.export.export(WithCache(model), inputs, dynamic_shapes=shapes)
    found = openvino.convert_model(program)
    names = ["input_ids", "attention_mask", "position_ids"]
    names += [f"past_key_values.{at // 2}.{'key' if at % 2 == 0 else 'value'}" for at in range(len(past))]
    for port, name in zip(found.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    kept = zip(names[3:], past, strict=True)
    found.reshape({name: openvino.PartialShape([-1, each.shape[1], -1, each.shape[3]]) for name, each in kept})
    for port, name in zip(found.outputs, ["logits", *names[3:]], strict=True):
        port.get_tensor().set_names({name.replace("past_key_values", "present")})
    settings = {"INFERENCE_PRECISION_HINT": job["precision"], "INFERENCE_NUM_THREADS": 1}
    decoding.answer(
        job, decoding.Graph(openvino.compile_model(found, "CPU", settings)), openvino.__version__.split("-")[0]
    )


if __name__ == "__main__":
    sys.exit(main())
