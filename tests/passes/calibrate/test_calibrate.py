"""Statistics: every way to call a linear map is call, padding is left out, blocks that are done do not run again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fxprune.ir import FxpruneError
from fxprune.passes.calibrate.batches import LinearCall, matrix
from fxprune.passes.calibrate.linear_calls import LinearCallRecorder
from fxprune.passes.calibrate.recorded_calls import recorded_calls
from fxprune.passes.calibrate.spread import RunningVariance
from fxprune.passes.couple.coupling import couple
from fxprune.passes.score.consumer_scores import readers_of
from fxprune.runtime.streaming.block_runner import BlockRunner
from fxprune.tracer.export import trace_causal_lm

VOCAB = 31


class Bare(nn.Module):
    """A weight of its own, in whatever form the forward wants it."""

    def __init__(self, shape: tuple[int, ...], call: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(x, self.weight)


CASES: list[tuple[str, Any, tuple[int, ...]]] = [
    ("linear", lambda: nn.Linear(5, 7), (2, 3, 5)),
    ("linear without bias", lambda: nn.Linear(5, 7, bias=False), (3, 5)),
    ("Conv1D", lambda: Conv1D(7, 5), (2, 3, 5)),
    ("conv1d", lambda: nn.Conv1d(5, 7, 3, stride=2, padding=1), (2, 5, 9)),
    ("conv2d", lambda: nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1)), (2, 5, 9, 8)),
    ("conv2d same", lambda: nn.Conv2d(5, 7, (4, 3), padding="same"), (2, 5, 6, 7)),
    ("conv2d circular", lambda: nn.Conv2d(5, 7, 3, padding=1, padding_mode="circular"), (2, 5, 6, 7)),
    ("conv3d", lambda: nn.Conv3d(3, 4, 2, bias=False), (2, 3, 4, 3, 5)),
    ("matmul", lambda: Bare((5, 7), lambda x, w: x @ w), (2, 3, 5)),
    ("transposed", lambda: Bare((7, 5), lambda x, w: torch.matmul(x, w.T)), (2, 3, 5)),
    ("linear of a transposed weight", lambda: Bare((5, 7), lambda x, w: F.linear(x, w.transpose(0, 1))), (2, 3, 5)),
    ("experts", lambda: Bare((4, 7, 5), lambda x, w: [F.linear(x, w[e]) for e in (2, torch.tensor(0))]), (3, 5)),
    ("experts by rows", lambda: Bare((4, 5, 7), lambda x, w: [x @ w[e] for e in range(4)]), (3, 5)),
    ("experts at once", lambda: Bare((4, 5, 7), torch.bmm), (4, 3, 5)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("build", "shape"), [pytest.param(b, s, id=n) for n, b, s in CASES])
def test_a_call_gives_inputs_whose_product_with_the_weight_is_the_output(build: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = build().double()
    with torch.no_grad(), LinearCallRecorder({"weight": module.weight}) as recorder:
        out = module(torch.randn(shape, dtype=torch.float64))
    expected = len(out) if isinstance(out, list) else 4 if module.weight.dim() == 3 and "Bare" in repr(module) else 1
    assert len(recorder.calls) == expected
    for call in recorder.calls:
        bias = 0 if call.bias is None else call.bias
        assert torch.allclose(call.x @ matrix(module.weight, call).T + bias, call.y, rtol=0, atol=1e-12)
        assert (call.bias is not None) == (getattr(module, "bias", None) is not None)
    total = sum(call.y.sum() for call in recorder.calls)
    assert torch.allclose(total, sum(o.sum() for o in out) if isinstance(out, list) else out.sum())


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: Bare((7, 5), lambda x, w: F.linear(x, w * 2)), (3, 5)),
        (lambda: Bare((5, 7), lambda x, w: torch.addmm(torch.zeros(7), x, w, alpha=2)), (3, 5)),
        (lambda: Bare((6, 5, 7), lambda x, w: x @ w), (3, 5)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (lambda: nn.Conv2d(4, 6, 3), (4, 5, 5)),
        (lambda: nn.Embedding(4, 6), None),
    ],
)
def test_what_is_no_linear_map_of_the_weight_is_not_taken_for_one(build: Any, shape: tuple[int, ...] | None) -> None:
    module = build()
    with torch.no_grad(), LinearCallRecorder({"weight": module.weight}) as recorder:
        module(torch.tensor([1, 2]) if shape is None else torch.randn(shape))
    assert not recorder.calls


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def padded(fill: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(VOCAB, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 6, dtype=torch.int64)
    ids[1, 4:], mask[1, 4:] = fill, 0
    return ids, mask


def test_padding_is_left_out() -> None:
    model = llama()
    names = [name for name, _ in model.named_parameters() if name.endswith("down_proj.weight")]
    runner = BlockRunner(model)
    found: list[list[LinearCall]] = []
    for fill in (0, 7):
        ids, mask = padded(fill)
        found.append([])
        with recorded_calls(runner, names, found[-1].append) as around:
            runner.run([lambda m, ids=ids, mask=mask: m(input_ids=ids, attention_mask=mask)], around)
    assert len(found[0]) == 3
    for first, second in zip(*found, strict=True):
        assert len(first.x) == 10
        assert torch.equal(first.x, second.x)
        assert first.sample.tolist() == [0] * 6 + [1] * 4


class Added(nn.Module):
    """A map whose outputs are added to something."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.map = nn.Linear(5, 5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        stream = x * 2
        out: Tensor = self.how(stream, self.map(x), x)
        return out


@pytest.mark.parametrize(
    ("how", "scale"),
    [
        (lambda stream, y, _x: stream + y, 2),
        (lambda stream, y, _x: y + stream, 2),
        (lambda stream, y, _x: torch.add(stream, F.dropout(y, 0.1, training=False)), 2),
        (lambda stream, y, _x: y.reshape(3, 2, 5).view(2, 3, 5).add(stream).add_(1), 2),
        (lambda _stream, y, x: (x + y) + y, 1),
        (lambda stream, y, _x: stream + y * 2, None),  # not the outputs themselves
        (lambda _stream, y, _x: y * (y + 0.04 * y.pow(3)), None),  # what is made of them is no stream
        (lambda _stream, y, _x: y + 1, None),
        (lambda stream, y, _x: stream.add_(y), None),  # afterwards it is not there any more
        (lambda stream, y, _x: y + stream[:, :1], None),
    ],
)
def test_what_outputs_are_added_to_is_kept(how: Any, scale: int | None) -> None:
    module = Added(how)
    x = torch.randn(2, 3, 5)
    with torch.no_grad(), LinearCallRecorder({"w": module.map.weight}) as recorder:
        module(x)
    (call,) = recorder.calls
    if scale is None:
        assert call.beside is None
    else:
        assert call.beside is not None
        assert torch.equal(call.beside, (x * scale).flatten(0, 1))


def test_padding_that_cannot_be_told_is_refused() -> None:
    mask = torch.tensor([[True, False]])
    module = nn.Linear(3, 3)
    with (
        pytest.raises(FxpruneError, match="reads 5 vectors of a batch of 2 tokens") as caught,
        torch.no_grad(),
        LinearCallRecorder({"w": module.weight}, lambda: mask),
    ):
        module(torch.randn(5, 3))
    assert caught.value.hint


def test_moments_of_batches_are_those_of_everything() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 100
    spread = RunningVariance()
    for part in (*x.split(13), x[:0]):
        spread.add(part)
    values = x.double().numpy()
    assert spread.count == 50
    np.testing.assert_allclose(spread.mean.numpy(), values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(spread.variance.numpy(), values.var(0), rtol=1e-9)
    np.testing.assert_allclose(spread.second.numpy(), (values**2).mean(0), rtol=1e-12)


def test_a_key_value_head_owns_the_columns_of_all_its_query_heads() -> None:
    coupling = couple(trace_causal_lm(llama()).graph)
    groups = [g for g in coupling.groups.values() if g.name.endswith(("layers.0.self_attn:kv_heads", "query_heads"))]
    readers = {reader.group.name: reader for reader in readers_of(groups, coupling.graph)}
    reader = readers["model.layers.0.self_attn:kv_heads"]
    assert reader.consumer.tensor == "model.layers.0.self_attn.o_proj.weight"
    assert reader.units(16).tolist() == [0] * 8 + [1] * 8
    assert readers["model.layers.0.self_attn:query_heads"].units(16).tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
