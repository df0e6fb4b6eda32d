"""Modules without values: what accelerate's own function makes, which is no part of the core."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from fxprune.runtime.model.empty_weights import empty_weights

accelerate = pytest.importorskip("accelerate", reason="comes with the extra fxprune[lora]")


class Marked(nn.Parameter):
    """A parameter of a class of its own."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.own = Marked(torch.ones(2), requires_grad=False)
        self.none = nn.Linear(2, 2, bias=False)
        self.own.note = "kept"  # type: ignore[attr-defined]


def description(module: nn.Module) -> list[tuple[str, type, torch.Size, torch.device, bool]]:
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return [(name, type(t), t.shape, t.device, t.requires_grad) for name, t in tensors]


def test_parameters_are_on_the_meta_device_and_buffers_have_values() -> None:
    with empty_weights():
        net = Net()
    assert {p.device.type for p in net.parameters()} == {"meta"}
    assert {b.device.type for b in net.buffers()} == {"cpu"}
    assert type(net.own) is Marked
    assert net.own.note == "kept"
    assert not net.own.requires_grad
    assert nn.Linear(2, 2).weight.device.type == "cpu", "what is built afterwards is as ever"


def test_a_model_is_what_accelerate_makes_of_it() -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=16
    )
    with empty_weights():
        ours = transformers.LlamaForCausalLM(config)
    with accelerate.init_empty_weights(include_buffers=False):
        theirs = transformers.LlamaForCausalLM(config)
    assert description(ours) == description(theirs)
    rotary = "model.rotary_emb.inv_freq"
    assert torch.equal(ours.get_buffer(rotary), theirs.get_buffer(rotary))


def test_it_ends_where_building_fails() -> None:
    with pytest.raises(ZeroDivisionError), empty_weights():
        _ = 1 // 0
    assert nn.Linear(2, 2).weight.device.type == "cpu"
