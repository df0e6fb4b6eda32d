"""The plain configuration of a smaller model: other architectures, empty fields, right shapes of the wrong function."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers

from fxprune.backends.huggingface.config_search import find_config, model_shapes, retargets
from fxprune.passes.shrink.module import shrink_module
from fxprune.tests.cuts import Cut, build, example, gpt2, logits, shrunk, spread


@pytest.mark.parametrize("row", retargets(), ids=lambda row: f"{row.source}-{row.target}")
def test_a_retarget_is_the_same_function(row: Any) -> None:
    """Equal logits, for the widths that the source's own configuration accepts as well."""
    config = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = build(
        row.source, **config, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-3,
        **{"attention_bias": True, "mlp_bias": True, **row.when},
    )  # fmt: skip
    partner = getattr(transformers, row.classes[type(model).__name__])
    other = partner(partner.config_class.from_dict(row.apply(model.config))).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))


def test_an_empty_field_may_hold_the_width() -> None:
    """GPT-2's inner width defaults to four times the residual width, and its field is empty."""
    model = build("gpt2", n_embd=64, n_head=4, n_layer=2, n_positions=64)
    cut = Cut(model)
    keep = spread([0, 2, 3], 64)
    for layer in range(2):
        cut.rows(1, keep, f"transformer.h.{layer}.mlp.c_fc.weight")
        cut.rows(0, keep, f"transformer.h.{layer}.mlp.c_fc.bias", f"transformer.h.{layer}.mlp.c_proj.weight")
    extents = cut.extents()
    shrink_module(model, cut.plan(), extents, example())
    match, why = find_config(model.config, type(model), model_shapes(model), extents[""])
    assert why == ""
    assert match is not None
    assert match.changes == {"n_inner": (None, 192)}


def test_a_configuration_with_the_right_shapes_can_be_the_wrong_one() -> None:
    cut, details = shrunk(gpt2)
    match, why = find_config(
        cut.model.config, type(cut.model), model_shapes(build("gpt2", n_embd=64, n_head=4, n_layer=2, n_positions=64)),
        details["quantities"], accept=lambda _: False,
    )  # fmt: skip
    assert match is None
    assert re.match(r"the \d+ configurations that give these shapes compute something else", why)
