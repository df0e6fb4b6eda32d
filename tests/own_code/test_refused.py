"""What cannot be written of a model with its own code is refused before any work; its code runs by consent only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import fxprune
from fxprune.api.pruning import request
from fxprune.backends.huggingface import weight_source
from fxprune.runtime.tolerances import LOGITS_TOLERANCE, relative_difference

from ..checkpoints import WIDTHS, write_checkpoint
from ..security.planted import write_code, write_into
from ..security.strangers import copied
from .written import OWN

Damage = Callable[[Path], None]


def text(file: str, old: str, new: str) -> Damage:
    """Another text in a file of the model."""

    def change(folder: Path) -> None:
        held = (folder / file).read_text()
        assert old in held
        (folder / file).write_text(held.replace(old, new))

    return change


def missing(file: str) -> Damage:
    return lambda folder: (folder / file).unlink()


def renamed(folder: Path) -> None:
    (folder / "modeling_interleaved.py").rename(folder / "modeling_fxprune.py")
    text("config.json", "modeling_interleaved.", "modeling_fxprune.")(folder)


def in_part(folder: Path) -> None:
    """A part of the model is in a file that has the name of fxprune's."""
    held = (folder / "modeling_interleaved.py").read_text()
    start, end = held.index("class FusedMLP"), held.index("class Block")
    (folder / "modeling_fxprune.py").write_text(
        "import torch.nn.functional as F\nfrom torch import nn\n\n\n" + held[start:end]
    )
    line = "from .configuration_interleaved import InterleavedConfig\n"
    rest = held[:start] + held[end:]
    (folder / "modeling_interleaved.py").write_text(
        rest.replace(line, line + "from .modeling_fxprune import FusedMLP\n")
    )


LAYER = "        self.layer_idx = layer_idx\n"


def bare(*, read: bool) -> Damage:
    """A tensor in a plain attribute, which the forward reads or not."""

    def change(folder: Path) -> None:
        text("modeling_interleaved.py", LAYER, f"{LAYER}        self.scales = torch.ones(2)\n")(folder)
        if read:
            text("modeling_interleaved.py", "qkv[..., -2, :]", "(qkv[..., -2, :] * self.scales[0])")(folder)

    return change


def drops_a_value(folder: Path) -> None:
    text(
        "configuration_interleaved.py",
        "    def __init__(",
        "    def to_dict(self):\n        found = super().to_dict()\n        found.pop('ffn_hidden_size', None)\n"
        "        return found\n\n    def __init__(",
    )(folder)


REFUSED: dict[str, tuple[str, Damage, str]] = {
    "a buffer that nothing fills": (
        "packed",
        text("modeling_packed.py", "elif isinstance(module, RotaryEmbedding)", "elif module is None"),
        r"without the values of 'model\.layers\.0\.self_attn\.rotary_emb\.cos_cached'",
    ),
    "a buffer that is filled with other values": (
        "packed",
        text("modeling_packed.py", "module.sin_cached.copy_(sin)", "module.sin_cached.copy_(cos)"),
        r"without the values of 'model\.layers\.0\.self_attn\.rotary_emb\.sin_cached'",
    ),
    "a tensor that is no buffer": (
        "interleaved",
        bare(read=True),
        r"without the values of 'transformer\.h\.0\.attn\.scales'",
    ),
    "a configuration that does not come back": (
        "interleaved",
        drops_a_value,
        r"has another 'transformer\.h\.0\.mlp\.down\.weight' when its configuration was written",
    ),
    "a model in a file with the name of fxprune's": ("interleaved", renamed, "is neither a class of transformers nor"),
    "a part in a file with the name of fxprune's": ("interleaved", in_part, r"has code in modeling_fxprune\.py"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_before_any_work(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(request, "ModelRun", never)
    name, damage, said = REFUSED[what]
    source = OWN[name].write(tmp_path / name, **({"ffn_hidden_size": 48} if name == "interleaved" else {}))
    damage(source)
    with pytest.raises(fxprune.RequestError, match=said) as caught:
        fxprune.apply(source, "magnitude", ratio=0.25, out=tmp_path / "out", trust_remote_code=True)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["packed", "interleaved"])
def test_what_is_refused_is_lost_in_transformers(name: str, tmp_path: Path) -> None:
    """The two tensors without which transformers loads a model."""
    what = "a buffer that nothing fills" if name == "packed" else "a tensor that is no buffer"
    source = OWN[name].write(tmp_path / f"{name}_lost")
    REFUSED[what][1](source)
    # Memory that nothing fills may hold by chance what was there before, which can be the right values.
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills such memory
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
    finally:
        torch.use_deterministic_algorithms(before)
    if name == "interleaved":
        assert model.transformer.h[0].attn.scales.is_meta
        return
    rotary = model.model.layers[0].self_attn.rotary_emb
    assert not torch.equal(rotary.cos_cached, rotary.tables()[0])


def test_what_is_lost_and_never_read_is_no_reason(tmp_path: Path, unverified: None) -> None:
    del unverified
    source = OWN["interleaved"].write(tmp_path / "interleaved")
    bare(read=False)(source)
    saved = fxprune.apply(source, "random{ratio=0.25}", out=tmp_path / "out", trust_remote_code=True).saved
    assert saved is not None
    assert saved.form == "uniform"


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_source, "verify_written", lambda *_: {})


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("free")
    source = OWN["packed"].write(folder / "packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_source, "verify_written", lambda *_: {})
        fxprune.apply(source, "random{ratio=0.25}", form="free", out=folder / "out", trust_remote_code=True)
    return folder / "out"


@pytest.fixture
def out(free: Path, tmp_path: Path) -> Path:
    """A copy of a free form, to be damaged."""
    return copied(free, tmp_path / "out")


def another(entry: Callable[[dict[str, Any]], None]) -> Damage:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        entry(config)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def unlisted(folder: Path) -> None:
    record = json.loads((folder / "fxprune.json").read_text())
    del record["code"]["modeling_packed.py"]
    (folder / "fxprune.json").write_text(json.dumps(record))


NOT_LOADED: dict[str, tuple[Damage, str]] = {
    "other code": (text("modeling_packed.py", "import math\n", "import math\nimport evil\n"), "is not the file that"),
    "other code of the configuration": (text("configuration_packed.py", "26", "27"), "is not the file that"),
    "code that is not listed": (unlisted, r"modeling_packed\.py would run, and fxprune\.json does not list it"),
    "no record": (missing("fxprune.json"), r"fxprune\.json does not exist"),
    "another class": (another(lambda c: c["fxprune"].update(own_class="evil.Evil")), r"evil\.py would run"),
    "no class": (another(lambda c: c["fxprune"].update(own_class="modeling_packed.math")), "which is no model"),
    "another configuration": (another(lambda c: c["auto_map"].update(AutoConfig="evil.EvilConfig")), r"evil\.py would"),
    "a class elsewhere": (another(lambda c: c["fxprune"].update(own_class="../evil.Evil")), "lacks code"),
    "of another kind": (another(lambda c: c["fxprune"].update(own_class=3)), r"'fxprune\.own_class'"),
    "a part that is missing": (missing("configuration_packed.py"), "lacks code"),
}


@pytest.mark.parametrize("what", NOT_LOADED)
def test_load_runs_nothing_else(what: str, out: Path, tmp_path: Path) -> None:
    write_code(out / "evil.py", tmp_path / "ran")
    damage, said = NOT_LOADED[what]
    damage(out)
    with pytest.raises(fxprune.FxpruneError, match=said) as caught:
        fxprune.load(out, trust_remote_code=True)
    assert caught.value.hint
    assert not (tmp_path / "ran").exists()


def test_load_does_not_run_the_modelling_file(out: Path, tmp_path: Path) -> None:
    write_code(out / "modeling_fxprune.py", tmp_path / "ran")
    fxprune.load(out, trust_remote_code=True)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_tokenizer_that_is_missing_is_left_out(tmp_path: Path, unverified: None) -> None:
    del unverified
    source = OWN["packed"].write(tmp_path / "packed")
    auto_map = {**OWN["packed"].auto_map, "AutoTokenizer": ["tokenization_packed.PackedTokenizer", None]}
    write_into(source / "config.json", auto_map=auto_map)
    applied = fxprune.apply(source, "random{ratio=0.25,heads=off}", out=tmp_path / "out", trust_remote_code=True)
    assert applied.saved is not None
    assert applied.saved.copied.left_out == (
        "the code that config.json names for AutoTokenizer: tokenization_packed.PackedTokenizer",
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"] == OWN["packed"].auto_map


TWICE = '''"""A Llama whose logits are twice as large."""

import transformers


class LlamaForCausalLM(transformers.LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output
'''


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("passes", ["magnitude{ratio=0.25,heads=off}", "magnitude{ratio=0.25}"])
def test_a_class_with_the_name_of_one_of_transformers(passes: str, tmp_path: Path) -> None:
    """It is never exchanged for that one, nor for one that computes the same as that one: a Llama with 6 heads would
    become a Mistral."""
    config = transformers.LlamaConfig(**{**WIDTHS, "num_attention_heads": 8, "num_key_value_heads": 4})
    source = write_checkpoint(tmp_path / "twice", config, dtype=torch.float32)
    (source / "modeling_twice.py").write_text(TWICE)
    write_into(source / "config.json", auto_map={"AutoModelForCausalLM": "modeling_twice.LlamaForCausalLM"})
    out = tmp_path / "smaller"
    saved = fxprune.apply(source, passes, out=out, trust_remote_code=True).saved
    assert saved is not None
    assert saved.form == ("uniform" if "off" in passes else "free")
    assert saved.model_type == "llama"
    assert "modeling_twice.py" in saved.code
    with pytest.raises(fxprune.RequestError, match=r"needs its own code: modeling_twice\.LlamaForCausalLM"):
        fxprune.load(out)
    ids = torch.arange(12).view(2, 6)
    loaded = fxprune.load(out, trust_remote_code=True).eval()
    with torch.no_grad():
        once = transformers.LlamaForCausalLM.forward(loaded, ids).logits
        assert relative_difference(loaded(ids).logits, once * 2) <= LOGITS_TOLERANCE
