"""The tokens that the pass vocabulary removes from a model: those that its choice leaves over."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...ir import Indices, RequestError
from ...runtime.vocabulary.scripts import Scripts, script_names
from ...runtime.vocabulary.tokens import Tokens
from ..couple.tokens import compared_tokens, couple_tokens, token_places
from ..data import Calibration, is_inputs
from ..shrink.tokens_kept import configured_tokens, keep_tokens
from ..state import State
from .choice import Choice, TokenCounts
from .vocabulary import FewerTokens


def remove_tokens(step: FewerTokens, state: State) -> None:
    """Remove what the options of the pass say, as :meth:`~.vocabulary.FewerTokens.run` says."""
    if step.name in state.ledger.report:
        raise RequestError("vocabulary: tokens were removed already", "give the pass once")
    if state.ledger.decisions or state.ledger.plan is not None or state.ledger.written:
        raise RequestError(
            "vocabulary: the passes before it have read or removed something by the ids that the tokens have now",
            "write vocabulary first",
        )
    coupling, group = couple_tokens(state.subject.graph, state.subject.model)
    tokens = _tokens(state)
    always = tokens.always | compared_tokens(coupling) | configured_tokens(state.subject.model)
    counts = None if step.languages is not None else _counted(step, state, group.units)
    choice = Choice(tokens, frozenset(n for n in always if n < group.units), group.units)
    kept = _chosen(step, choice, counts)
    state.ledger.report[step.name] = {
        "tokens": {"before": group.units, "after": len(kept)},
        "kept_always": len(choice.always),
        **({} if counts is None else {"on_the_text": counts.seen, "kept_of_the_text": counts.share(kept)}),
    }
    keep_tokens(state, coupling, group, kept)


def _tokens(state: State) -> Tokens:
    tokenizer = state.host.tokenizer
    if tokenizer is None:
        raise RequestError(
            f"vocabulary: this {type(state.subject.model).__name__} has no tokenizer, which names the tokens",
            "leave the pass vocabulary out, or give a Hugging Face model with its tokenizer",
        )
    return Tokens.of(tokenizer)


def _counted(step: FewerTokens, state: State, rows: int) -> TokenCounts:
    data = state.data.given(f"vocabulary{{keep={step.keep}}} needs")
    names = token_places(state.subject.graph, state.subject.model).arguments
    found = np.zeros(rows, dtype=np.int64)
    for ids in _read(data, names):
        found += np.bincount(ids[(ids >= 0) & (ids < rows)], minlength=rows)
    return TokenCounts(found)


def _chosen(step: FewerTokens, choice: Choice, counts: TokenCounts | None) -> Indices:
    if step.languages is not None:
        kept = choice.of_scripts(Scripts(script_names(step.languages)))
    else:
        assert counts is not None, "text was read"
        wanted = step.wanted()
        kept = choice.seen(counts) if wanted is None else choice.most_frequent(counts, wanted)
    rounded = choice.rounded(kept, step.multiple_of, counts)
    if len(rounded) == choice.rows:
        advice = "give a smaller multiple_of" if len(kept) < choice.rows else _advice(step, choice)
        raise RequestError(f"vocabulary: nothing to remove: all {choice.rows:,} tokens stay", advice)
    return rounded


def _advice(step: FewerTokens, choice: Choice) -> str:
    if len(choice.always) == choice.rows:
        return "leave the pass out: every token is a special one, a byte, or the only one for its character"
    if step.languages is not None:
        return f"leave the pass out: every token is of {step.languages}, or of no script; or give fewer scripts"
    return "give keep=tokens:N with a smaller N"


def _read(data: Calibration, names: Iterable[str]) -> Iterable[Indices]:
    """The ids in a text, or in inputs under these names."""
    if not is_inputs(data):
        yield data.tokens().numpy()
        return
    for row in data.rows(1 << 20):
        for name in names:
            if name in row and not row[name].is_floating_point():
                yield row[name].flatten().numpy()
