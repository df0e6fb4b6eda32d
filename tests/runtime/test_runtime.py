"""What tracer, passes and backends share: tensors by name, experts, quiet, tolerances."""

from __future__ import annotations

import logging
import math
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from fxprune.ir.plan import Plan
from fxprune.ir.repairs import ConfigView
from fxprune.runtime.experts import BATCHED, ONE_BY_ONE, configs_of, experts_as
from fxprune.runtime.generators import generator_states, set_generator_states
from fxprune.runtime.quiet import quiet
from fxprune.runtime.tensors import slice_tensors, tensors_by_every_name, tensors_by_name
from fxprune.runtime.tolerances import relative_difference, roundings, same_function, same_program


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, bias=False)
        self.second = nn.Linear(3, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(3))


def test_a_shared_tensor_has_one_first_name_and_every_other() -> None:
    assert list(tensors_by_name(Tied())) == ["first.weight", "scale"]
    assert list(tensors_by_every_name(Tied())) == ["first.weight", "second.weight", "scale"]


def test_slices_of_one_tensor_are_cut_together_and_ties_are_kept() -> None:
    net = Tied()
    plan = Plan(slices={("first.weight", 1): np.array([0, 2]), ("first.weight", 0): np.array([1, 3])})
    assert [(name, list(cuts)) for name, cuts in plan.by_tensor().items()] == [("first.weight", [0, 1])]
    expected = net.first.weight.detach()[[1, 3]][:, [0, 2]]
    slice_tensors(net, plan)
    assert net.second.weight is net.first.weight
    assert isinstance(net.first.weight, nn.Parameter)
    assert torch.equal(net.first.weight, expected)


class Block(nn.Module):
    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config


def test_experts_are_switched_where_a_config_names_them_and_each_gets_its_own_back() -> None:
    one, other, none = LlamaConfig(), LlamaConfig(), LlamaConfig()
    one._experts_implementation, other._experts_implementation = "grouped_mm", ONE_BY_ONE
    net = nn.Sequential(Block(one), Block(ConfigView(other, {"hidden_size": 3})), Block(one), Block(none))
    assert [id(config) for config in configs_of(net)] == [id(one), id(other), id(none)]
    with pytest.raises(KeyError), experts_as(BATCHED, net):  # noqa: PT012
        found = [config._experts_implementation for config in (one, other, none)]
        raise KeyError
    assert found == [BATCHED, BATCHED, None]
    assert [config._experts_implementation for config in (one, other, none)] == ["grouped_mm", ONE_BY_ONE, None]


def test_quiet_drops_what_libraries_say_and_puts_their_levels_back(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("transformers")
    before = logger.level
    with quiet():
        print("a stage")
        assert not logger.isEnabledFor(logging.ERROR)
        with pytest.warns(UserWarning, match="passes"):
            warnings.warn("passes", stacklevel=1)
    with quiet(warn=False):
        warnings.warn("does not pass: warnings are errors here", stacklevel=1)
    assert logger.level == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("got", "reference", "expected"),
    [
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([1.0], [1.0, 2.0], math.inf),
        ([math.nan], [1.0], math.inf),
        ([math.inf], [1.0], math.inf),
        ([0.1], [0.0], math.inf),
        ([0.0], [0.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_differences_are_relative_to_the_largest_reference(
    got: list[float], reference: list[float], expected: float
) -> None:
    assert relative_difference(torch.tensor(got), torch.tensor(reference)) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tolerances_leave_room_for_some_roundings_of_their_dtype_and_not_for_a_mistake(dtype: torch.dtype) -> None:
    assert roundings(6, dtype) < same_program(dtype) <= same_function(dtype) <= 0.05


def test_generators_go_on_where_they_were() -> None:
    def drawn() -> list[float]:
        return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), float(torch.rand(1))]

    random.gauss()  # leaves a spare number, and so do those of NumPy
    np.random.randn()
    states = generator_states()
    first = drawn()
    set_generator_states(states)
    assert drawn() == first
