"""Pipeline text: parsing, printing, shared options, and every mistake a user can make."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxprune.ir.errors import RequestError
from fxprune.ir.options import option, options_of
from fxprune.passes.base import Pass, PassKind
from fxprune.passes.pipeline import parse_pipeline, print_pipeline


@dataclass(frozen=True, kw_only=True)
class Score(Pass):
    name: ClassVar[str] = "score"
    kind: ClassVar[PassKind] = PassKind.SCORE
    variant: str = option("vector", "which formula", choices=("vector", "element1", "element2"))
    ratio: float = option(0.5, "share of units to remove", at_least=0, below=1, hint="give a ratio such as 0.25")
    layers: tuple[int, int] | None = option(None, "which layers")
    heads: bool = option(True, "whether heads go")
    seed: int = option(0, "of the draw")


@dataclass(frozen=True, kw_only=True)
class Train(Pass):
    name: ClassVar[str] = "train"
    kind: ClassVar[PassKind] = PassKind.RECOVER
    epochs: float = option(1.0, "passes over the data")
    keep: str | None = option(None, "where to keep the adapter")
    schedule: Literal["linear", "cosine"] = option("linear", "of the learning rate")
    seed: int = option(0, "of the order")


@dataclass(frozen=True, kw_only=True)
class Plain(Pass):
    name: ClassVar[str] = "plain"
    kind: ClassVar[PassKind] = PassKind.RECOVER


PASSES = (Score, Train, Plain)


def test_text_becomes_typed_passes() -> None:
    assert parse_pipeline("score{variant=element1,ratio=0.25,layers=4:30,heads=false},train{epochs=2}", PASSES) == (
        Score(variant="element1", ratio=0.25, layers=(4, 30), heads=False),
        Train(epochs=2.0),
    )


def test_blanks_and_empty_braces_and_repeated_texts() -> None:
    assert parse_pipeline([" score { ratio = 0.1 ,\n seed = 3 }", "plain{}"], PASSES) == (
        Score(ratio=0.1, seed=3),
        Plain(),
    )


def test_printing_leaves_defaults_out() -> None:
    text = "score{ratio=0.25,layers=0:2},plain,train{keep=out/adapter}"
    assert (
        print_pipeline(parse_pipeline("score{heads=true,ratio=0.25,layers=0:2},plain,train{keep=out/adapter}", PASSES))
        == text
    )


ANY_SCORE = st.builds(
    Score,
    variant=st.sampled_from(("vector", "element1", "element2")),
    ratio=st.floats(0, 1, exclude_max=True),
    layers=st.none() | st.tuples(st.integers(0, 99), st.integers(1, 99)).map(lambda pair: (pair[0], sum(pair))),
    heads=st.booleans(),
    seed=st.integers(),
)
ANY_TRAIN = st.builds(
    Train,
    epochs=st.floats(allow_nan=False, allow_infinity=False),
    keep=st.none() | st.text(),
    schedule=st.sampled_from(("linear", "cosine")),
    seed=st.integers(),
)


@given(st.lists(ANY_SCORE | ANY_TRAIN | st.just(Plain()), min_size=1))
def test_every_pipeline_round_trips(pipeline: list[Pass]) -> None:
    assert parse_pipeline(print_pipeline(pipeline), PASSES) == tuple(pipeline)
    assert parse_pipeline(print_pipeline(pipeline, defaults=True), PASSES) == tuple(pipeline)


def test_a_pipeline_can_be_printed_with_all_its_options() -> None:
    text = "train{epochs=1.0,keep=none,schedule=linear,seed=3},plain"
    assert print_pipeline(parse_pipeline("train{seed=3},plain", PASSES), defaults=True) == text


def test_shared_options_go_to_the_passes_that_have_them() -> None:
    assert parse_pipeline(
        "score,train,plain", PASSES, {"ratio": 0.25, "seed": "7", "layers": (4, 30), "epochs": None}
    ) == (
        Score(ratio=0.25, seed=7, layers=(4, 30)),
        Train(seed=7),
        Plain(),
    )


def test_a_shared_option_may_repeat_what_the_text_says() -> None:
    assert parse_pipeline("score{ratio=0.25}", PASSES, {"ratio": "0.250"}) == (Score(ratio=0.25),)


def test_a_default_is_for_the_passes_that_say_nothing() -> None:
    """One that is told by name keeps what it was told, and the others still get the default."""
    found = parse_pipeline("score{heads=true},score,train", PASSES, defaults={"heads": False, "ratio": 0.1})
    assert found == (Score(heads=True, ratio=0.1), Score(heads=False, ratio=0.1), Train())


def test_what_is_given_for_all_passes_goes_before_a_default() -> None:
    found = parse_pipeline("score,train", PASSES, {"seed": 7, "heads": None}, defaults={"seed": 3, "heads": "false"})
    assert found == (Score(seed=7, heads=False), Train(seed=7))


def test_a_default_need_not_reach_any_pass_and_is_printed_as_text_that_holds_alone() -> None:
    assert parse_pipeline("plain", PASSES, defaults={"heads": False}) == (Plain(),)
    found = parse_pipeline("score", PASSES, defaults={"heads": False})
    assert print_pipeline(found) == "score{heads=false}"


@pytest.mark.parametrize("text", [3, None, [Plain()], ["plain", 3], b"plain"], ids=repr)
def test_a_pipeline_is_text(text: object) -> None:
    with pytest.raises(RequestError, match="a pipeline is text, not"):
        parse_pipeline(text, PASSES)  # type: ignore[arg-type]


MISTAKES = [
    ("", "expected the name of a pass", "\n  \n  ^", "fxprune passes"),
    ("score,,train", "expected the name of a pass", "\n  score,,train\n        ^", "fxprune passes"),
    (
        "scoer{ratio=0.2}",
        "unknown pass 'scoer'",
        "\n  scoer{ratio=0.2}\n  ^^^^^",
        "did you mean 'score'? passes: score, train, plain",
    ),
    (
        "plain,score train",
        "expected ',' or the end of the pipeline, found 't'",
        "\n              ^",
        "separated by commas",
    ),
    ("score{ratio=0.2", "expected ',' or '}'", "\n                 ^", "{name=value,name=value}"),
    ("score{ratio}", "expected '=' after option 'ratio'", "\n             ^", "ratio=VALUE"),
    ("score{=1}", "expected the name of an option", "\n        ^", "{name=value"),
    ("score{ratio=}", "expected a value for 'ratio'", "\n              ^", "quotes"),
    (
        "score{rato=0.2}",
        "pass 'score' has no option 'rato'",
        "\n        ^^^^",
        "did you mean 'ratio'? options: variant, ratio,",
    ),
    ("plain{ratio=0.2}", "pass 'plain' has no option 'ratio'", "\n        ^^^^^", "this pass has no options"),
    ("score{seed=1,seed=1}", "option 'seed' is given twice", "\n               ^^^^", "give it once"),
    ("score{ratio=much}", "option 'ratio' cannot be 'much'", "\n              ^^^^", "allowed for ratio: number"),
    ("score{ratio=nan}", "option 'ratio' cannot be 'nan'", "\n              ^^^", "allowed for ratio: number"),
    ("score{seed=0.5}", "option 'seed' cannot be '0.5'", "\n             ^^^", "allowed for seed: integer"),
    ("score{heads=yes}", "option 'heads' cannot be 'yes'", "\n              ^^^", "allowed for heads: true | false"),
    ("score{layers=4:4}", "option 'layers' cannot be '4:4'", "\n               ^^^", "START:END, end exclusive | none"),
    ("score{layers=4}", "option 'layers' cannot be '4'", "\n               ^", "START:END, end exclusive | none"),
    ("score{seed=none}", "option 'seed' cannot be 'none'", "\n             ^^^^", "allowed for seed: integer"),
    ('score{seed="1"}', "option 'seed' cannot be '1'", "\n             ^^^", "allowed for seed: integer"),
    (
        "score{variant=elemnt1}",
        "option 'variant' cannot be 'elemnt1'",
        "\n                ^^^^^^^",
        "did you mean 'element1'",
    ),
    ("train{schedule=step}", "option 'schedule' cannot be 'step'", "\n                 ^^^^", "linear | cosine"),
    ('train{keep="\\q"}', "this is not a string", "\n             ^^^^", "quote as JSON does"),
    (
        "plain,score{ratio=1.5}",
        "score: ratio=1.5 is outside [0, 1)",
        "\n                    ^^^",
        "give a ratio such as 0.25",
    ),
]


@pytest.mark.parametrize(("text", "message", "caret", "hint"), MISTAKES, ids=[row[1] for row in MISTAKES])
def test_every_mistake_is_pointed_at(text: str, message: str, caret: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_pipeline(text, PASSES)
    assert caught.value.message.startswith(message + "\n")
    assert caught.value.message.endswith(caret)
    assert hint in caught.value.hint


SHARED_MISTAKES = [
    ("plain", {"ratio": 0.25}, "no pass of 'plain' has an option 'ratio'", "passes with this option: score"),
    ("plain", {"depth": 2}, "no pass of 'plain' has an option 'depth'", "fxprune passes"),
    (
        "score{ratio=0.3}",
        {"ratio": 0.25},
        "two values for one option: ratio=0.3 in the pipeline, ratio=0.25",
        "one of the two",
    ),
    ("plain,score", {"ratio": 2}, "score: ratio=2 is outside [0, 1)\n  ratio=2\n        ^", "such as 0.25"),
    ("score", {"ratio": -0.1}, "score: ratio=-0.1 is outside [0, 1)\n  ratio=-0.1\n        ^^^^", "such as 0.25"),
    *(
        (
            "score",
            {"ratio": word},
            f"option 'ratio' cannot be '{word}'\n  ratio={word}\n",
            "number; give a ratio such as",
        )
        for word in ("nan", "-nan", "inf", "1e400", "")
    ),
    ("score", {"ratio": "x"}, "option 'ratio' cannot be 'x'\n  ratio=x\n        ^", "allowed for ratio: number"),
]


@pytest.mark.parametrize(
    ("text", "shared", "message", "hint"), SHARED_MISTAKES, ids=[row[2] for row in SHARED_MISTAKES]
)
def test_shared_option_mistakes(text: str, shared: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_pipeline(text, PASSES, shared)
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


@dataclass(frozen=True, kw_only=True)
class Picky(Pass):
    name: ClassVar[str] = "picky"
    kind: ClassVar[str] = "recover"
    steps: int = option(1, "how many", at_least=1)
    rate: float = option(1.0, "how fast", above=0)
    share: float = option(0.5, "of the loss", above=0, at_most=1)
    most: int = option(0, "at most", at_most=3)
    less: float | None = option(None, "less than", below=3)
    warm: int = option(0, "steps of warm-up")

    def check(self) -> None:
        super().check()
        if self.warm > self.steps:
            raise RequestError(f"warm={self.warm} is more than steps={self.steps}", "change one of them")


@pytest.mark.parametrize(
    ("option", "message", "hint"),
    [
        ("steps=0", "is below 1", "give 1 or more"),
        ("rate=0", "is not above 0", "give a number above 0"),
        ("share=0", "is outside (0, 1]", "give a number in (0, 1]"),
        ("share=1.5", "is outside (0, 1]", "give a number in (0, 1]"),
        ("most=4", "is above 3", "give 3 or less"),
        ("less=3", "is not below 3", "give a number below 3"),
    ],
)
def test_a_value_outside_the_bounds_of_its_option_is_pointed_at(option: str, message: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_pipeline(f"picky{{{option}}}", (Picky,))
    start = len("picky{" + option.partition("=")[0] + "=")
    caret = " " * start + "^" * (len(option) + len("picky{") - start)
    assert caught.value.message == f"picky: {option} {message}\n  picky{{{option}}}\n  {caret}"
    assert caught.value.hint == hint


def test_values_at_their_bounds_pass_and_none_is_no_value() -> None:
    (step,) = parse_pipeline("picky{steps=1,rate=1e-9,share=1,most=3,less=2.9}", (Picky,))
    assert step == Picky(steps=1, rate=1e-9, share=1.0, most=3, less=2.9)
    Picky(less=None).check()


def test_a_value_of_python_is_checked_as_that_of_text_is() -> None:
    with pytest.raises(RequestError, match=r"picky: rate=inf is not finite"):
        Picky(rate=float("inf")).check()
    with pytest.raises(RequestError, match=r"score: variant=vektor is not supported") as caught:
        Score(variant="vektor").check()
    assert caught.value.hint == "choose from vector, element1, element2"


def test_a_mistake_of_several_options_is_pointed_at_as_a_whole() -> None:
    with pytest.raises(RequestError, match="warm=2 is more than steps=1") as caught:
        parse_pipeline("picky{warm=2}", (Picky,))
    assert caught.value.message.endswith("\n  picky{warm=2}\n  ^^^^^^^^^^^^^")


def test_options_are_described_for_the_listing() -> None:
    wants = {option.name: option.wants for option in options_of(Score)}
    assert wants == {
        "variant": "vector | element1 | element2",
        "ratio": "number",
        "layers": "START:END, end exclusive | none",
        "heads": "true | false",
        "seed": "integer",
    }


def test_a_type_without_a_text_form_is_a_mistake_of_the_pass() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Pass):
        name: ClassVar[str] = "odd"
        kind: ClassVar[PassKind] = PassKind.SCORE
        table: complex = option(0j, "a number")

    with pytest.raises(TypeError, match=r"Odd\.table: pipeline text has no form"):
        options_of(Odd)


@dataclass(frozen=True, kw_only=True)
class Budgeted(Plain):
    """A pass with options that leave others without effect."""

    name: ClassVar[str] = "budgeted"

    ratio: float = option(0.25, "share of units to remove")
    target: str | None = option(None, "budget instead of ratio", replaces="ratio")
    by: str = option("uniform", "how", ("uniform", "search"))
    moves: int = option(64, "exchanges", only_with=("by", "search"))


@pytest.mark.parametrize(
    ("text", "shared", "message"),
    [
        ("budgeted{ratio=0.3,target=half}", {}, "ratio=0.3 has no effect beside target=half"),
        ("budgeted{target=half,ratio=0.25}", {}, "ratio=0.25 has no effect beside target=half"),
        ("budgeted{ratio=0.3}", {"target": "half"}, "ratio=0.3 has no effect beside target=half"),
        ("budgeted", {"target": "half", "ratio": 0.3}, "ratio=0.3 has no effect beside target=half"),
        ("budgeted{moves=5}", {}, "moves=5 has an effect only with by=search"),
        ("budgeted{moves=5,by=uniform}", {}, "moves=5 has an effect only with by=search"),
        ("budgeted{target=half}", {"ratio": 0.3}, "ratio=0.3 has no effect beside target=half"),
    ],
)
def test_an_option_without_effect_is_refused(text: str, shared: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        parse_pipeline(text, [*PASSES, Budgeted], shared)


def test_an_option_that_another_replaces_is_neither_shared_nor_printed() -> None:
    found = parse_pipeline("budgeted{target=half},budgeted,score", [*PASSES, Budgeted], {"ratio": 0.5})
    assert found == (Budgeted(target="half"), Budgeted(ratio=0.5), Score(ratio=0.5))
    text = print_pipeline(found[:2], defaults=True)
    assert text == ("budgeted{target=half,by=uniform},budgeted{ratio=0.5,target=none,by=uniform}")
    assert parse_pipeline("budgeted{by=search,moves=5}", [Budgeted]) == (Budgeted(by="search", moves=5),)
