"""Pipeline text: ``taylor{variant=element1,ratio=0.25},lora{epochs=2}`` to passes and back.

pipeline ::= pass ("," pass)*, where a pass is a call of :mod:`fxprune.ir.call_text`, or of a pipeline with a name
(:mod:`.named_pipelines`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..ir.call_text import CallKind, OptionCall, Scanner, bind, having
from ..ir.errors import RequestError
from ..ir.extras import require
from ..ir.options import has_effect, options_of, replacing, write_value
from .base import Pass
from .named_pipelines import written_out

PASS = CallKind(
    "pass",
    "passes",
    "a pipeline is pass,pass{option=value}; see `fxprune passes`",
    inside="in the pipeline",
    beside="for all passes",
)


def parse_pipeline(
    text: str | Sequence[str],
    passes: Sequence[type[Pass]],
    shared: Mapping[str, Any] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    uniform: bool = False,
) -> tuple[Pass, ...]:
    """The passes that pipeline text stands for, with their options checked.

    Args:
        text: pipeline text; several texts run one after the other.
        passes: the passes there are.
        shared: option values that go to every pass that has an option of that name; None stands for "not given". Each
            must reach at least one pass.
        defaults: what an option is where neither the text nor ``shared`` says anything, in place of the pass's own
            default. Unlike a shared value it need reach no pass, and contradicts nothing.
        uniform: whether all layers must get equal widths; named pipelines ask for them then.

    Raises:
        RequestError: a mistake in the text, an unknown pass or option, a value that an option cannot have, a shared
            option that no pass takes or that contradicts the text; no text at all; a pass that needs a package which
            is not installed.
    """
    whole = _text(text)
    by_name = {cls.name: cls for cls in passes}
    given = {name: value for name, value in (shared or {}).items() if value is not None}
    calls = [step for call in _calls(whole) for step in written_out(call, by_name, PASS, uniform=uniform)]
    bound = tuple(bind(call, by_name, given, PASS, defaults or {}) for call in calls)
    _every_shared_option_lands(given, bound, by_name)
    for step in bound:
        require(f"the pass {step.name}", *step.packages)
    return bound


def print_pipeline(pipeline: Iterable[Pass], *, defaults: bool = False) -> str:
    """The shortest text that parses to ``pipeline``; with ``defaults``, a text with every option."""
    return ",".join(print_pass(step, defaults=defaults) for step in pipeline)


def print_pass(step: Pass, *, defaults: bool = False) -> str:
    """The text of one pass; options at their defaults are left out unless ``defaults``, those without effect always."""
    given = [
        f"{option.name}={write_value(getattr(step, option.name))}"
        for option in options_of(type(step))
        if (defaults or getattr(step, option.name) != option.default) and has_effect(step, option)
    ]
    return step.name + ("{" + ",".join(given) + "}" if given else "")


def _calls(text: str) -> list[OptionCall]:
    scanner = Scanner(text, PASS)
    calls = [scanner.call()]
    while scanner.take(","):
        calls.append(scanner.call())
    scanner.end("',' or the end of the pipeline", "passes are separated by commas: taylor{ratio=0.25},lora")
    return calls


def _text(text: str | Sequence[str]) -> str:
    """One text of what may be several."""
    parts = list(text) if isinstance(text, Sequence) and not isinstance(text, str) else [text]
    for part in parts:
        if not isinstance(part, str):
            raise RequestError(
                f"a pipeline is text, not {type(part).__name__}", "write 'taylor{ratio=0.25},lora', or a list of such"
            )
    return ",".join(parts)


def _every_shared_option_lands(
    shared: Mapping[str, Any], bound: Sequence[Pass], by_name: Mapping[str, type[Pass]]
) -> None:
    for name, value in shared.items():
        takers = [step for step in bound if name in (option.name for option in options_of(type(step)))]
        others = [replacing(step, name) for step in takers]
        if None in others:
            continue
        if others and others[0] is not None:
            other = f"{others[0].name}={write_value(getattr(takers[0], others[0].name))}"
            raise RequestError(f"{name}={write_value(value)} has no effect beside {other}", "give one of the two")
        known = having(name, by_name)
        raise RequestError(
            f"no pass of {print_pipeline(bound)!r} has an option {name!r}",
            f"passes with this option: {', '.join(known)}" if known else "see `fxprune passes`",
        )
