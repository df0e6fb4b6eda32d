"""Rows for recurrent layers and their cells; as in ``rule_rows``.

A state depends on all units of the state before it, and on zeroed ones as if they were not there.
"""

from __future__ import annotations

from .rule_rows import Row

ONE_LAYER = "true, 1, 0.0, false, false, false"
TWO_IN_BOTH_DIRECTIONS = "false, 2, 0.0, false, true, true"
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def gated(unit: str, gates: int) -> str:
    return f"({' + '.join([unit] * gates)})" if gates > 1 else unit


def hx(name: str) -> str:
    return "[%h, %c]" if name == "lstm" else "%h"


def states(name: str, each: str) -> list[str]:
    return [f"%{state}: f64[{each}]" for state in ("hc" if name == "lstm" else "h")]


def one_layer(name: str, gates: int) -> Row:
    """Five inputs and four hidden units, the steps first."""
    rows, d = 4 * gates, gated("d", gates)
    weights = [f"%i: f64[{rows}, 5]", f"%r: f64[{rows}, 4]", f"%a: f64[{rows}]", f"%b: f64[{rows}]"]
    held = states(name, "1, 2, 4")
    state = ["1 b d"] * len(held)
    return Row(
        ", ".join(["%x: f64[3, 2, 5]", *held, *weights]),
        f"aten.{name}.input(%x, {hx(name)}, [%i, %r, %a, %b], {ONE_LAYER})",
        f"{', '.join(['a! b c', *state, f'{d} c', f'{d} d', d, d])} -> {', '.join(['a! b d', *state])}",
        zeroed=True,
    )


def two_layers(name: str, gates: int) -> Row:
    """The same without biases; the second layer takes in the output of both directions. The samples first."""
    rows = 4 * gates
    weights = [f"%i{k}: f64[{rows}, {5 if k < 2 else 8}], %r{k}: f64[{rows}, 4]" for k in range(4)]
    listed = ", ".join(f"%i{k}, %r{k}" for k in range(4))
    held = states(name, "4, 2, 4")
    before = ["d! a e"] if len(held) == 1 else ["d! a e", "f! a e"]
    after = ["f! a e"] if len(held) == 1 else ["g! a e", "h! a e"]
    e = gated("e", gates)
    taken = [f"{e} c, {e} e"] * 2 + [f"{e} (e + e), {e} e"] * 2
    return Row(
        ", ".join(["%x: f64[2, 3, 5]", *held, *weights]),
        f"aten.{name}.input(%x, {hx(name)}, [{listed}], {TWO_IN_BOTH_DIRECTIONS})",
        f"{', '.join(['a b! c', *before, *taken])} -> {', '.join(['a b! (e + e)', *after])}",
        zeroed=True,
    )


def cell(name: str, gates: int) -> Row:
    rows, c = 4 * gates, gated("c", gates)
    weights = [f"%i: f64[{rows}, 5]", f"%r: f64[{rows}, 4]", f"%a: f64[{rows}]", f"%b: f64[{rows}]"]
    held = states(name, "2, 4")
    state = ["a c"] * len(held)
    return Row(
        ", ".join(["%x: f64[2, 5]", *held, *weights]),
        f"aten.{name}_cell(%x, {hx(name)}, %i, %r, %a, %b)",
        f"{', '.join(['a b', *state, f'{c} b', f'{c} c', c, c])} -> {', '.join(state)}",
        zeroed=True,
    )


PROJECTED = Row(
    "%x: f64[2, 3, 5], %h: f64[2, 2, 3], %c: f64[2, 2, 6], "
    "%i: f64[24, 5], %r: f64[24, 3], %a: f64[24], %b: f64[24], %p: f64[3, 6], "
    "%j: f64[24, 3], %s: f64[24, 3], %d: f64[24], %e: f64[24], %q: f64[3, 6]",
    "aten.lstm.input(%x, [%h, %c], [%i, %r, %a, %b, %p, %j, %s, %d, %e, %q], true, 2, 0.0, false, false, true)",
    "a b! c, d! a e, f! a g, "
    "(g + g + g + g) c, (g + g + g + g) e, (g + g + g + g), (g + g + g + g), e g, "
    "(g + g + g + g) e, (g + g + g + g) e, (g + g + g + g), (g + g + g + g), e g -> a b! e, h! a e, i! a g",
    zeroed=True,
)

RECURRENT = [
    *(row(name, gates) for name, gates in GATES.items() for row in (one_layer, two_layers, cell)),
    PROJECTED,
    Row(
        "%x: f64[2, 5], %h: f64[2, 4], %i: f64[4, 5], %r: f64[4, 4]",
        "aten.rnn_relu_cell(%x, %h, %i, %r)",
        "a b, a c, c b, c c -> a c",
        zeroed=True,
    ),
]
