"""What the files of a tokenizer may make its classes open: nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune.backends.copied_files import copy_files
from fxprune.cli import main
from fxprune.ir.errors import RequestError
from fxprune.runtime.consent import Consent
from fxprune.tracer.model import load_tokenizer, resolve

from ..strangers import copied, write_model

CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("entries") / "model")


def told(folder: Path, name: str, entries: dict[str, Any]) -> Path:
    file = folder / name
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(held | entries))
    return folder


OPENS: dict[str, tuple[str, dict[str, Any]]] = {
    "a vocabulary": (CONFIG, {"tokenizer_class": "BertTokenizer", "vocab": "/secret.txt"}),
    "a number as a file": (CONFIG, {"vocab": 0}),
    "merges": (CONFIG, {"merges": "secret.txt"}),
    "another tokenizer.json": (CONFIG, {"fast_tokenizer_files": ["sub/tokenizer.4.0.json/../../../secret"]}),
    "one of the directory": (CONFIG, {"fast_tokenizer_files": ["tokenizer.4.0.json"]}),
    "gguf": (CONFIG, {"gguf_file": "../secret.gguf"}),
    "a model of sentencepiece": (CONFIG, {"sp_model_kwargs": {"model_file": "/secret.model"}}),
    "bytes of a model": (CONFIG, {"sp_model_kwargs": {"model_proto": "x"}}),
    "a dictionary": (CONFIG, {"mecab_kwargs": {"mecab_option": "-d /secret"}}),
    "another dictionary": (CONFIG, {"sudachi_kwargs": {"sudachi_config_path": "/secret"}}),
    "positional arguments": (CONFIG, {"init_inputs": ["/secret.txt"]}),
    "an object": (CONFIG, {"tokenizer_object": "x"}),
    "any other file": (CONFIG, {"word_shape_file": "secret"}),
    "a file of the directory": (CONFIG, {"emoji_file": "config.json"}),
    "entities": (CONFIG, {"entity_vocab": "secret.json"}),
    "sentencepiece of a translator": (CONFIG, {"source_spm": "/secret"}),
    "a name that nobody knows": (CONFIG, {"x": "/"}),
    "one of several": (CONFIG, {"x": ["You are kind.", "/"]}),
    "a directory of the user's": (CONFIG, {"x": "~"}),
    "an address": (CONFIG, {"x": "https://example.org/secret"}),
    "an object that nobody knows": (CONFIG, {"x": {"y": 1}}),
    "a vocabulary among the tokens": (MAP, {"vocab": "/secret.txt"}),
    "a file among the tokens": (MAP, {"vocab_file": "/secret.txt"}),
}


@pytest.mark.parametrize("what", OPENS)
def test_an_entry_that_may_be_a_file_is_refused(model: Path, tmp_path: Path, what: str) -> None:
    name, entries = OPENS[what]
    folder = told(copied(model, tmp_path / "model"), name, entries)
    with pytest.raises(RequestError, match=next(reversed(entries))) as caught:
        load_tokenizer(resolve(folder))
    assert "out of it" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "entries",
    [
        {"bos_token": 5.0, "unk_token": ["a", 3]},
        {"sp_model_kwargs": "x"},
        {"model_max_length": "abc"},
        {"src_lang": {}},
    ],
    ids=["tokens", "arguments", "a longest length", "a language"],
)
def test_a_value_of_another_type_is_refused(model: Path, tmp_path: Path, entries: dict[str, Any]) -> None:
    folder = told(copied(model, tmp_path / "model"), CONFIG, entries)
    with pytest.raises(RequestError, match=rf"tokenizer_config\.json is damaged: '{next(reversed(entries))}"):
        load_tokenizer(resolve(folder))


@pytest.mark.parametrize("part", [{"vocab": "/secret.txt"}, {"vocab": {}, "merges": "/secret.txt"}])
def test_a_path_in_place_of_the_words_is_refused(model: Path, tmp_path: Path, part: dict[str, Any]) -> None:
    """A class that is built from the words of tokenizer.json takes a path in their place."""
    folder = told(copied(model, tmp_path / "model"), "tokenizer.json", {"model": {"type": "WordPiece", **part}})
    with pytest.raises(RequestError, match=r"tokenizer\.json is damaged: 'model\."):
        load_tokenizer(resolve(folder))


def test_the_tokenizers_of_a_retrieval_model_are_looked_at_too(model: Path, tmp_path: Path) -> None:
    folder = copied(model, tmp_path / "model")
    (folder / "generator_tokenizer").mkdir()
    told(folder / "generator_tokenizer", CONFIG, {"vocab": "/secret.txt"})
    with pytest.raises(RequestError, match=r"generator_tokenizer/tokenizer_config\.json has 'vocab'"):
        resolve(folder)


@pytest.mark.parametrize(
    "call",
    [
        fxprune.trace,
        lambda at: fxprune.apply(at, "magnitude", ratio=0.5, out=at.with_name("out")),
        lambda at: fxprune.export(at, at.with_name("out")),
        lambda at: fxprune.evaluate([at], text=at.with_name("text.txt")),
    ],
    ids=["trace", "apply", "export", "eval"],
)
def test_each_command_refuses_it_before_any_work(model: Path, tmp_path: Path, call: Callable[[Path], Any]) -> None:
    folder = told(copied(model, tmp_path / "model"), CONFIG, {"vocab": "/secret.txt"})
    (tmp_path / "text.txt").write_text("a b c " * 200)
    with pytest.raises(RequestError, match="'vocab', which may be the name of a file"):
        call(folder)
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_so(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = told(copied(model, tmp_path / "model"), CONFIG, {"vocab": "/secret.txt"})
    assert main(["trace", str(folder)]) == 2
    assert "take vocab out of it" in capfd.readouterr().err


TOKEN = {"content": "b", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": True}
USUAL: dict[str, Any] = {
    "add_bos_token": True,
    "add_prefix_space": None,
    "added_tokens_decoder": {"1": TOKEN},
    "additional_special_tokens": ["a", {"__type": "AddedToken", **TOKEN}],
    "bos_token": {"__type": "AddedToken", **TOKEN},
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "clean_up_tokenization_spaces": False,
    "cls_token_box": [0, 0, 0, 0],
    "errors": "replace",
    "extra_ids": 100,
    "image_token": "c",
    "image_token_id": 2,
    "legacy": True,
    "mask_token_sent": "<mask_1>",
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 1000000000000000019884624838656,
    "name_or_path": "/home/somebody/model",
    "padding_side": "left",
    "processor_class": "LlavaProcessor",
    "sp_model_kwargs": {"enable_sampling": False},
    "special_tokens_map_file": "/home/user/.cache/huggingface/special_tokens_map.json",
    "split_special_tokens": False,
    "tokenizer_file": "/home/user/.cache/huggingface/tokenizer.json",
    "vocab_file": None,
}


def test_what_real_tokenizers_have_in_their_files_is_read(model: Path, tmp_path: Path) -> None:
    folder = told(copied(model, tmp_path / "model"), CONFIG, USUAL)
    told(folder, MAP, {"bos_token": "b", "unk_token": TOKEN, "additional_special_tokens": ["a"]})
    plain = load_tokenizer(resolve(model))
    assert load_tokenizer(resolve(folder))("a b c")["input_ids"] == plain("a b c")["input_ids"]


def test_a_tokenizer_of_its_own_code_takes_what_it_likes(model: Path, tmp_path: Path) -> None:
    entries = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "anything": "/"}
    folder = told(copied(model, tmp_path / "model"), CONFIG, entries)
    resolve(folder, trust_remote_code=True)
    with pytest.raises(RequestError, match="'anything'"):
        resolve(folder)


def test_paths_of_another_machine_are_not_copied(model: Path, tmp_path: Path) -> None:
    """Versions of transformers before 5 open them."""
    folder, out = told(copied(model, tmp_path / "model"), CONFIG, USUAL), tmp_path / "out"
    away = {"speaker_file": "../../secret", "do_resize": True, "kept_file": "speakers.json"}
    told(folder, "preprocessor_config.json", away)
    out.mkdir()
    done = copy_files([folder / CONFIG, folder / "preprocessor_config.json"], out, Consent.nothing(folder))
    assert done.left_out == (
        "the paths in tokenizer_config.json: special_tokens_map_file, tokenizer_file",
        "the paths in preprocessor_config.json: speaker_file",
    )
    assert "/root" not in (out / CONFIG).read_text()
    assert json.loads((out / "preprocessor_config.json").read_text()) == {
        "do_resize": True,
        "kept_file": "speakers.json",
    }
    assert load_tokenizer(resolve(folder)).bos_token == "b"


@pytest.mark.parametrize("value", ["You are a helpful assistant.", "/no_think", "a" * 5000, "a\0b", ["x/y", "z"]])
def test_texts_that_are_no_paths_of_anything_here_are_values(model: Path, tmp_path: Path, value: Any) -> None:
    folder = told(copied(model, tmp_path / "model"), CONFIG, {"default_prompt": value})
    assert load_tokenizer(resolve(folder))("a")["input_ids"]
