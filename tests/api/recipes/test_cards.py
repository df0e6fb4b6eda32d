"""Model cards: what the Hub reads of them, what they take of a source, and what is uploaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from fxprune import api
from fxprune.backends.artifact import RECORD
from fxprune.backends.huggingface.model_card import metadata_of
from fxprune.backends.recipe import recipe_of
from fxprune.backends.replaceable import CARD
from fxprune.ir.errors import FxpruneError, RequestError

from ...checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    write_checkpoint(folder / "source")
    (folder / "source" / CARD).write_text("---\nlicense: apache-2.0\nlanguage: [en, fr]\ntags: [x]\n---\n# Source\n")
    api.apply(folder / "source", "magnitude", ratio=0.5, out=folder / "out")
    return folder / "out"


class Hub(HfApi):  # type: ignore[misc]
    """Keeps what would be uploaded."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def create_repo(self, repo_id: str, **given: Any) -> Any:
        self.calls.append(("create", {"repo_id": repo_id, **given}))

    def upload_folder(self, **given: Any) -> Any:
        self.calls.append(("folder", given))
        return "https://hub/commit/1"

    def upload_file(self, **given: Any) -> Any:
        self.calls.append(("file", given))
        return "https://hub/commit/2"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    Hub.calls = []
    return Hub


def test_a_card_says_what_the_hub_reads(out: Path) -> None:
    card = ModelCard.load(out / CARD)
    data = card.data.to_dict()
    assert (data["base_model"], data["library_name"], data["license"]) == ("source", "transformers", "apache-2.0")
    assert data["language"] == ["en", "fr"]
    assert {"fxprune", "pruned"} <= set(data["tags"])
    record = json.loads((out / RECORD).read_text())
    assert f"| parameters | {record['parameters']['before']:,} | {record['parameters']['after']:,} |" in card.text
    assert "AutoModelForCausalLM.from_pretrained" in card.text
    assert "SentenceTransformer" not in card.text
    assert recipe_of(record).rstrip("\n") in card.text
    assert CARD in record["files"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("# no metadata\n", {}),
        ("---\nlicense: mit\n", {"license": "mit"}),
        ("---\nlicense: [mit\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ('---\nlicense: "mit\\n# <script>"\nlicense_name: !!python/object:os.system x\n---\n', {}),
        ('---\nlicense: "<b>"\npipeline_tag: text-generation\n---\n', {"pipeline_tag": "text-generation"}),
        ("---\nlanguage: [en, [x], 3]\n---\n", {"language": ["en"]}),
    ],
)
def test_what_a_stranger_wrote_is_taken_with_care(text: str, found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(text)
    assert metadata_of(tmp_path) == found
    assert metadata_of(None) == {}
    assert metadata_of(tmp_path / "nowhere") == {}


def test_what_the_record_lists_is_uploaded(out: Path, hub: type[Hub], tmp_path: Path) -> None:
    (out / "notes.txt").write_text("mine")
    results = tmp_path / "eval.json"
    row = {"name": str(out), "perplexity": {"value": 12.5}}
    results.write_text(json.dumps({"models": [row, {"name": "source", "perplexity": {"value": 10.0}}]}))
    done = api.push(out, "org/small", private=True, results=results)
    assert [name for name, _ in hub.calls] == ["create", "folder", "file"]
    assert hub.calls[0][1] == {"repo_id": "org/small", "private": True, "exist_ok": True}
    record = json.loads((out / RECORD).read_text())
    assert set(hub.calls[1][1]["allow_patterns"]) == {RECORD, *record["files"]} - {CARD}
    card = ModelCard(hub.calls[2][1]["path_or_fileobj"].decode())
    assert card.data.eval_results[0].metric_value == 12.5
    assert "| source | 10.000 |" in card.text
    assert "notes.txt" not in done.files
    assert done.url == "https://hub/commit/2"
    (out / "notes.txt").unlink()


def test_a_dry_run_uploads_nothing(out: Path, hub: type[Hub]) -> None:
    assert api.push(out, "org/small", dry_run=True).url == ""
    assert hub.calls == []


@pytest.mark.parametrize("name", ["small", "a/b/c", "org/..", "org/a b", ""])
def test_a_name_that_is_none_is_refused(name: str, out: Path, hub: type[Hub]) -> None:
    with pytest.raises(RequestError, match="name"):
        api.push(out, name)
    assert hub.calls == []


def test_changed_and_foreign_directories_are_refused(out: Path, hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        api.push(tmp_path, "org/small")
    before = (out / "config.json").read_bytes()
    (out / "config.json").write_bytes(before + b" ")
    with pytest.raises(RequestError, match="was changed"):
        api.push(out, "org/small")
    (out / "config.json").write_bytes(before)
    (tmp_path / "eval.json").write_text('{"models": []}')
    with pytest.raises(RequestError, match="holds no models"):
        api.push(out, "org/small", results=tmp_path / "eval.json")
    (tmp_path / "eval.json").write_text('{"models": [{"name": "x", "perplexity": {"value": 1}}]}')
    with pytest.raises(RequestError, match="no row is of 'out'"):
        api.push(out, "org/small", results=tmp_path / "eval.json")
    assert hub.calls == []


@pytest.mark.parametrize(
    ("error", "hint"),
    [(LocalTokenNotFoundError("no token"), "hf auth login"), (ConnectionError("no network"), "check the network")],
)
def test_what_the_hub_refuses_is_told(
    error: Exception, hint: str, out: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(FxpruneError) as caught:
        api.push(out, "org/small")
    assert hint in caught.value.hint


def test_a_card_that_the_user_edited_is_not_replaced(out: Path) -> None:
    before = (out / CARD).read_text()
    (out / CARD).write_text(before + "My notes.\n")
    with pytest.raises(RequestError, match=r"README\.md"):
        api.apply(out.parent / "source", "random", ratio=0.5, out=out, force=True)
    assert "My notes." in (out / CARD).read_text()
    (out / CARD).write_text(before)
    assert api.push(out, "org/small", dry_run=True).files
