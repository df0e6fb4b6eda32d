"""What ``trace`` and ``apply`` print says exactly what was done, and how to load it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from fxprune import api
from fxprune.api.pruning.group_change import GroupChange
from fxprune.api.pruning.result import Applied
from fxprune.api.terminal.cells import Copied, new_table
from fxprune.api.terminal.loading import loading
from fxprune.api.terminal.tables import _alike, _changes, _spread, applied, trace
from fxprune.backends.huggingface.save import SavedModel
from fxprune.ir.groups import Group, Kind


@pytest.mark.parametrize(
    ("layers", "shown"),
    [
        ([3], "m.layers.3.mlp"),
        ([0, 1], "m.layers.{0..1}.mlp"),
        ([0, 2], "m.layers.{0,2}.mlp"),
        ([0, 4, 6, 7], "m.layers.{0,4,6..7}.mlp"),
        ([2, 3, 4, 9, 11, 12, 13], "m.layers.{2..4,9,11..13}.mlp"),
    ],
)
def test_a_row_names_its_layers(layers: list[int], shown: str) -> None:
    assert _spread(f"m.layers.{layers[0]}.mlp", layers) == shown
    own = _spread(f"m.layers.{layers[0]}:width", layers)  # a group of the layer itself, as in BERT
    assert own == shown.replace(".mlp", ":width")


def test_layers_that_lost_as_much_share_a_row_and_others_do_not() -> None:
    after = {2: 424, 3: 418, 4: 424, 5: 424}
    changes = [GroupChange(f"m.layers.{n}.mlp:width", "width", n, 704, kept) for n, kept in after.items()]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(_changes(changes))
    lines = [line.split() for line in captured.get().splitlines() if "mlp" in line]
    assert [(line[0], line[-1]) for line in lines] == [
        ("m.layers.{2,4..5}.mlp:width", "424"),
        ("m.layers.3.mlp:width", "418"),
    ]


@pytest.mark.parametrize("full", [False, True])
def test_a_full_table_has_a_row_for_each_layer(full: bool) -> None:
    changes = [GroupChange(f"m.layers.{n}.mlp:width", "width", n, 704, 424) for n in range(12)]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(_changes(changes, full=full))
    names = [line.split()[0] for line in captured.get().splitlines() if "mlp" in line]
    assert names == ([f"m.layers.{n}.mlp:width" for n in range(12)] if full else ["m.layers.{0..11}.mlp:width"])


@pytest.mark.parametrize("full", [False, True])
def test_a_full_trace_has_a_row_for_each_layer(full: bool) -> None:
    console = Console(width=200)
    with console.capture() as captured:
        for part in trace(api.trace("demo"), full=full):
            console.print(part)
    names = [line.split()[0] for line in captured.get().splitlines() if ".mlp:width" in line]
    assert names == ([f"model.layers.{n}.mlp:width" for n in range(5)] if full else ["model.layers.{0..4}.mlp:width"])


def test_heads_in_unequal_numbers_of_groups_do_not_share_a_row() -> None:
    def heads(layer: int, kept: int) -> Group:
        parent = Group(f"m.layers.{layer}.a:kv_heads", 0, kept, Kind.KV_HEADS, (), layer=layer)
        return Group(f"m.layers.{layer}.a:query_heads", 1, 2, Kind.QUERY_HEADS, (), parent=parent, layer=layer)

    found = _alike([heads(0, 4), heads(1, 3), heads(2, 4)], full=False)
    assert [[group.layer for group in groups] for groups in found] == [[0, 2], [1]]


def test_nothing_is_cut_off_where_a_table_becomes_a_list() -> None:
    table = new_table("group", "kind", "members")
    words = " ".join(f"layers.{n}.self_attn.q_proj.weight.1" for n in range(6))
    table.add_row("model:channels", "channels", words)
    console = Console(width=60)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    assert all(len(line.rstrip()) <= 60 for line in lines)
    assert [word for line in lines for word in line.split() if word.startswith("layers.")] == words.split()


def test_what_is_to_be_copied_is_on_one_line_however_narrow_the_terminal() -> None:
    checks = {"loaded_by": "transformers.AutoModelForCausalLM"}
    saved = SavedModel(Path("a" * 60), "free", "llama", checks=checks, code={"modeling_fxprune.py": "0"})
    result = Applied("m", "", "", "", (2, 1), (2, 1), (), (), {}, saved=saved)
    (copied,) = (part for part in applied(result) if isinstance(part, Copied))
    assert copied.text.splitlines() == loading(saved)


def test_two_lines_of_python_load_what_was_written() -> None:
    checks = {"loaded_by": "transformers.AutoModelForCausalLM"}
    plain = SavedModel(Path('a "b"'), "uniform", "llama", checks=checks)
    assert loading(plain) == [
        "from transformers import AutoModelForCausalLM",
        'model = AutoModelForCausalLM.from_pretrained("a \\"b\\"")',
    ]
    free = SavedModel(Path("out"), "free", "llama", checks=checks, code={"modeling_fxprune.py": "0"})
    assert loading(free)[1] == 'model = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)'
    assert not loading(SavedModel(Path("out"), "uniform", "llama"))
