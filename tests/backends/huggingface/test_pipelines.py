"""``transformers.pipeline`` on pruned directories of three modalities: it says what it says of the original with zeros,
and finds the labels, the tokenizer and the processors of the source. Likewise what sentence-transformers reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

import fxprune
from fxprune.backends.artifact import read_plan
from fxprune.backends.huggingface.sentence_modules import copy_sentence_modules
from fxprune.ir.plan import Plan
from fxprune.tests.checkpoints import write_checkpoint
from fxprune.tests.equivalence import masked
from fxprune.tests.families.other import tiny_config

LABELS = {number: f"label {number}" for number in range(3)}
FORMS = {"uniform": "magnitude{ratio=0.25,heads=off}", "free": "magnitude{ratio=0.25,layers=0:1}"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fox", "in", "the", "wood"]


def tokenizer() -> Any:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))


def sound() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(1600).astype(np.float32)


KINDS: dict[str, tuple[str, str, Callable[[], Any], Callable[[], Any]]] = {
    "text-classification": ("bert", "BertForSequenceClassification", tokenizer, lambda: "the fox in the wood"),
    "image-classification": (
        "vit", "ViTForImageClassification", lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
        image,
    ),
    "audio-classification": (
        "wav2vec2", "Wav2Vec2ForSequenceClassification", transformers.Wav2Vec2FeatureExtractor, sound,
    ),
}  # fmt: skip
"""Task -> model type, class, what prepares its input, and an input."""


def written(task: str, folder: Path) -> Any:
    """A tiny model with its processor, whose outputs depend on all of it."""
    model_type, name, processor, _ = KINDS[task]
    config = tiny_config(model_type)
    config.id2label, config.label2id = LABELS, {label: number for number, label in LABELS.items()}
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return model


BESIDE = {
    "text-classification": ("tokenizer", transformers.AutoTokenizer),
    "image-classification": ("image_processor", transformers.AutoImageProcessor),
    "audio-classification": ("feature_extractor", transformers.AutoFeatureExtractor),
}
"""Task -> how a pipeline calls what prepares its input, and what loads that."""


def scores(task: str, model: Any, folder: Path, **options: Any) -> dict[str, float]:
    """What the pipeline says; a model that is loaded already comes with the files of a folder."""
    beside = {}
    if not isinstance(model, str):
        name, loader = BESIDE[task]
        beside = {name: loader.from_pretrained(folder)}
    pipe = transformers.pipeline(task, model=model, **beside, dtype=torch.float32, **options)
    return {found["label"]: found["score"] for found in pipe(KINDS[task][3](), top_k=3)}


@pytest.mark.first_rows(1)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", KINDS)
def test_a_pipeline_says_what_it_says_of_the_original_with_zeros(task: str, form: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    dense = written(task, source)
    saved = fxprune.apply(source, FORMS[form], out=out).saved
    plan = Plan({}, read_plan(out))
    assert saved.form == form
    assert plan.slices
    found = scores(task, str(out), out, trust_remote_code=form == "free")
    expected = scores(task, masked(dense, plan), source)
    assert found.keys() == expected.keys() == set(LABELS.values())
    assert all(abs(found[label] - expected[label]) < 1e-5 for label in found)
    before = scores(task, dense, source)
    assert max(abs(before[label] - expected[label]) for label in before) > 1e-3, "what was removed mattered"


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def with_modules(folder: Path, modules: Any) -> Path:
    """What sentence-transformers writes beside a model."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 48, "pooling_mode_mean_tokens": true}'
    )
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(
        '{"max_seq_length": 9, "model_args": {"trust_remote_code": true}}'
    )
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "cosine"}')
    return folder


def test_modules_that_follow_a_model_follow_what_was_made_of_it(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    transformers.BertModel(tiny_config("bert")).save_pretrained(source)
    with_modules(source, MODULES)
    saved = fxprune.apply(source, "magnitude{ratio=0.25}", out=out).saved
    assert json.loads((out / "modules.json").read_text()) == MODULES
    assert json.loads((out / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 48
    assert json.loads((out / "sentence_bert_config.json").read_text()) == {"max_seq_length": 9}
    assert saved.copied.left_out == ("model_args of sentence_bert_config.json",)
    assert (out / "config_sentence_transformers.json").is_file()
    shown = (out / "README.md").read_text()
    assert 'model = AutoModel.from_pretrained("DIRECTORY", trust_remote_code=True)' in shown
    assert 'model = SentenceTransformer("DIRECTORY", trust_remote_code=True)' in shown


def test_a_mean_over_tokens_gets_the_new_width(tmp_path: Path) -> None:
    source, out = with_modules(tmp_path / "source", MODULES), tmp_path / "out"
    out.mkdir()
    copy_sentence_modules(source, out, width=40, was=48)
    pooling = json.loads((out / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": 40, "pooling_mode_mean_tokens": True}


@pytest.mark.parametrize("pipeline", ["magnitude{ratio=0.25,layers=0:1}", "drop{sub_blocks=1,samples=2,length=8}"])
def test_the_model_without_its_head_is_loaded_too(pipeline: str, tmp_path: Path) -> None:
    """By ``AutoModel``, as vLLM and sentence-transformers do."""
    source, out, text = tmp_path / "source", tmp_path / "out", tmp_path / "text.txt"
    write_checkpoint(source, dtype=torch.float32)
    tokenizer().save_pretrained(source)
    text.write_text("the fox in the wood " * 30)
    assert fxprune.apply(source, pipeline, calib=text, out=out).saved.form == "free"
    whole = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype=torch.float64)
    part = transformers.AutoModel.from_pretrained(out, trust_remote_code=True, dtype=torch.float64)
    assert type(part).__name__ == "LlamaModel"
    assert {f"model.{name}" for name in part.state_dict()} == whole.state_dict().keys() - {"lm_head.weight"}
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        states = part(input_ids=ids).last_hidden_state
        assert torch.equal(whole.lm_head(states), whole(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("modules", "width", "said"),
    [
        ({"not": "a list"}, 48, "modules.json, which lists no modules"),
        ([{**MODULES[1], "type": "custom.Pooling"}], 48, "modules.json, whose custom.Pooling is not known to be data"),
        ([MODULES[0], {**MODULES[1], "path": ".."}], 48, "modules.json, whose '..' is no name that .* gives a folder"),
        ([{**MODULES[0], "path": "0_BERT"}], 48, "modules.json, whose model is in the folder 0_BERT"),
        ([MODULES[0], DENSE], 40, "modules.json, whose .*Dense takes states of the width before"),
        ([MODULES[0], DENSE], 48, "modules.json, which is damaged: .*2_Dense"),
        ("[", 48, "modules.json, which is damaged"),
    ],
)
def test_modules_that_are_not_copied(modules: Any, width: int, said: str, tmp_path: Path) -> None:
    source, out = with_modules(tmp_path / "source", modules), tmp_path / "out"
    if modules == "[":
        (source / "modules.json").write_text("[")
    out.mkdir()
    (found,) = copy_sentence_modules(source, out, width=width, was=48)
    assert re.match(said, found)
    assert not (out / "modules.json").exists()
