"""Models without some tokens: what they compute for the others is as before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t

from fxprune.api.model_call import ModelCall
from fxprune.ir.errors import RequestError
from fxprune.ir.groups import Kind
from fxprune.passes.couple.coupling import couple
from fxprune.passes.couple.tokens import compared_tokens, couple_tokens
from fxprune.passes.shrink.tokens_kept import TokensKept, configured_tokens, keep_tokens
from fxprune.passes.state import State, Subject
from fxprune.passes.structure import ANALYSES

ROWS = 97
WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = {"bos_token_id": 4, "eos_token_id": 2, "pad_token_id": 1}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 2, "max_position_embeddings": 32,
}  # fmt: skip
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 1}

MODELS: dict[str, Callable[[], Any]] = {
    "untied": lambda: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=ROWS, **WIDTHS, **IDS, tie_word_embeddings=False)),
    "tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=ROWS, **WIDTHS, **IDS, tie_word_embeddings=True)),
    "capped": lambda: t.Gemma2ForCausalLM(
        t.Gemma2Config(vocab_size=ROWS, **WIDTHS, **IDS, head_dim=8, num_key_value_heads=2)
    ),
    "masked, with a bias": lambda: t.BertForMaskedLM(t.BertConfig(vocab_size=ROWS, **WIDTHS, **IDS)),
    "looks for padding": lambda: t.RobertaForMaskedLM(t.RobertaConfig(vocab_size=ROWS, **WIDTHS, **IDS)),
    "no head": lambda: t.BertModel(t.BertConfig(vocab_size=ROWS, **WIDTHS, **IDS)),
    "classes": lambda: t.BertForSequenceClassification(t.BertConfig(vocab_size=ROWS, **WIDTHS, **IDS, num_labels=3)),
    "shared, with a stored bias": lambda: t.BartForConditionalGeneration(t.BartConfig(vocab_size=ROWS, **BART, **IDS)),
    "shared": lambda: t.T5ForConditionalGeneration(t.T5Config(vocab_size=ROWS, **T5, **IDS)),
}


def _traced(made: Callable[[], Any]) -> State:
    torch.manual_seed(0)
    model = made().eval().double()
    model.config.architectures = [type(model).__name__]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    traced = ModelCall(model.config).trace(model.float())
    return State(Subject(traced.graph, model.double(), example=traced.example, outputs=traced.outputs))


def _kept(state: State) -> np.ndarray[Any, np.dtype[np.int64]]:
    coupling, _ = couple_tokens(state.subject.graph, state.subject.model)
    wanted = {*range(7, ROWS, 3), *configured_tokens(state.subject.model), *compared_tokens(coupling)}
    return np.array(sorted(number for number in wanted if number < ROWS), dtype=np.int64)


def _outputs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        found: torch.Tensor = model(**given)[0]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_tokens_that_stay_are_as_before(name: str) -> None:
    state = _traced(MODELS[name])
    dense, kept = copy.deepcopy(state.subject.model), _kept(state)
    coupling, group = couple_tokens(state.subject.graph, state.subject.model)
    assert group.kind is Kind.TOKENS
    keep_tokens(state, coupling, group, kept)

    smaller = state.subject.model
    ids = torch.randint(len(kept), (2, 9), generator=torch.Generator().manual_seed(1))
    ids[0, 3] = int(np.searchsorted(kept, 1))  # padding, where a model may look for it
    wanted, found = _outputs(dense, torch.from_numpy(kept)[ids]), _outputs(smaller, ids)
    if wanted.shape[-1] == ROWS:
        wanted = wanted[..., kept]
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert smaller.config.vocab_size == smaller.get_input_embeddings().weight.shape[0] == len(kept)
    for field, number in IDS.items():
        assert kept[getattr(smaller.config, field)] == number
    (decision,) = state.ledger.decisions
    assert TokensKept.from_json(decision.to_json()).count == ROWS


@pytest.mark.parametrize("name", ["untied", "tied", "shared, with a stored bias"])
def test_other_passes_find_the_axis_frozen(name: str) -> None:
    graph = _traced(MODELS[name]).subject.graph
    held = [group for group in couple(graph).groups.values() if group.size == ROWS]
    assert held
    assert all(group.frozen is not None and group.kind is not Kind.TOKENS for group in held)


def test_a_copy_to_look_back_at_loses_the_same_tokens() -> None:
    state = _traced(MODELS["untied"])
    state.before.keep("model", state.subject.runner.twin(), frozenset())
    kept = _kept(state)
    keep_tokens(state, *couple_tokens(state.subject.graph, state.subject.model), kept)
    ids = torch.arange(len(kept))[None, :20]
    assert torch.equal(_outputs(state.before.model, ids), _outputs(state.subject.model, ids))


def test_a_decision_is_done_again() -> None:
    state, again = _traced(MODELS["untied"]), _traced(MODELS["untied"])
    kept = _kept(state)
    keep_tokens(state, *couple_tokens(state.subject.graph, state.subject.model), kept)
    state.ledger.decisions[0].redo(again)
    ids = torch.arange(len(kept))[None, :20]
    assert torch.equal(_outputs(again.subject.model, ids), _outputs(state.subject.model, ids))
    assert again.ledger.plan is not None
    assert {name for name, _ in again.ledger.plan.slices} == {"model.embed_tokens.weight", "lm_head.weight"}


class LogProbabilities(t.LlamaForCausalLM):
    """Gives log probabilities in place of logits."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        found.logits = found.logits.log_softmax(-1)
        return found


class Summed(t.LlamaForCausalLM):
    """Takes the mean of all logits away from each."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        found.logits = found.logits - found.logits.mean(-1, keepdim=True)
        return found


class Cut(t.LlamaForCausalLM):
    """Gives no logits for the last tokens."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        found.logits = found.logits[..., :-5]
        return found


class Computes(t.LlamaForCausalLM):
    """Computes with the ids themselves."""

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return super().forward((input_ids + 1) % ROWS, **kwargs)


class Forbids(t.LlamaForCausalLM):
    """Makes every second token unlikely."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        found.logits = found.logits - torch.arange(ROWS, device=found.logits.device) % 2
        return found


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (LogProbabilities, "normalises over its tokens|computes with all of them together"),
        (Summed, "normalises over its tokens|computes with all of them together"),
        (Cut, "one part of a dimension|slice"),
        (Computes, "looks no token up that is its input"),
        (Forbids, "values for each of them that the model's code computes"),
    ],
)
def test_models_that_do_more_with_their_tokens_are_refused(kind: type[Any], said: str) -> None:
    config = t.LlamaConfig(vocab_size=ROWS, **WIDTHS, **IDS, tie_word_embeddings=False)
    state = _traced(lambda: kind(config))
    with pytest.raises(RequestError, match=said):
        couple_tokens(state.subject.graph, state.subject.model)


def test_the_analysis_that_passes_share_stays_as_it_is() -> None:
    assert [analysis.name for analysis in ANALYSES] == ["couple"]
