"""Uploads an artifact to the Hugging Face Hub, with its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..backends.artifact import RECORD, read_record
from ..backends.digests import sha256
from ..backends.huggingface.model_card import with_results
from ..backends.replaceable import CARD
from ..ir.errors import FxpruneError, RequestError, first_line
from ..runtime.json_object import read_json_object
from .progress import Progress, silent


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    Attributes:
        repository: ``ORG/NAME``.
        url: of the commit; "" in a dry run.
        files: names of the files.
        bytes: their size.
    """

    repository: str
    url: str
    files: tuple[str, ...]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def push(
    artifact: str | Path,
    repository: str,
    *,
    private: bool = False,
    results: str | Path | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Pushed:
    """Upload the files that ``fxprune.json`` lists, and no others, to a model repository of the Hub.

    Args:
        artifact: a directory that ``apply`` wrote.
        repository: ``ORG/NAME``; it is made if it does not exist.
        private: whether a new repository is private.
        results: output of ``fxprune eval ... --json``, for the model card.
        dry_run: check everything, and upload nothing.
        progress: told what is being done.

    Raises:
        RequestError: fxprune did not write the directory, a file of it was changed or is missing, or ``repository`` is
            no name of one.
        FxpruneError: the Hub refuses, or cannot be reached.
    """
    _check_name(repository)
    folder = Path(artifact)
    progress(f"checking {folder}")
    files = _unchanged(folder)
    card = _card(folder, results)
    found = Pushed(repository, "", files, sum((folder / name).stat().st_size for name in files))
    if dry_run:
        return found
    progress(f"uploading {folder} to {repository}")
    return replace(found, url=_upload(folder, repository, files, card, private=private))


def _check_name(repository: str) -> None:
    """Raise RequestError unless ``repository`` is ``ORG/NAME``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not declared so

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RequestError(f"'{repository}' is no name of a repository: {first_line(error)}", "give ORG/NAME") from None
    if repository.count("/") != 1:
        raise RequestError(f"'{repository}' names no owner", "give ORG/NAME")


def _upload(folder: Path, repository: str, files: Sequence[str], card: str, *, private: bool) -> str:
    """Upload ``files``, with ``card`` in place of theirs unless it is ""; the address of the last commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi(library_name="fxprune")
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=[name for name in files if name != CARD or not card],
            commit_message="Pruned by fxprune",
        )  # fmt: skip
        if card:
            done = hub.upload_file(path_or_fileobj=card.encode("utf-8"), path_in_repo=CARD, repo_id=repository)
    except LocalTokenNotFoundError as error:
        raise RequestError(first_line(error), "log in with `hf auth login`, or set HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:  # httpx's errors of the connection are OSError or wrapped as such
        raise FxpruneError(
            f"{repository}: {first_line(error)}", "check the network, the name, and that your token may write there"
        ) from error
    return str(done)


def _unchanged(folder: Path) -> tuple[str, ...]:
    """The files that the record lists, and the record."""
    record = read_record(folder)
    listed: Mapping[str, str] = record.get("files") or {}
    if not listed:
        raise RequestError(f"{folder / RECORD} lists no files", "give a directory that `fxprune apply` wrote")
    for name, digest in listed.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise RequestError(f"{path} is missing", "write the artifact again")
        if name != CARD and sha256(path) != digest:  # a card is there to be edited
            raise RequestError(f"{path} was changed since fxprune wrote it", "write the artifact again")
    return (*listed, RECORD)


def _card(folder: Path, results: str | Path | None) -> str:
    """The card with results; "" when there are none to add."""
    if results is None:
        return ""
    held = read_json_object(Path(results), "give the output of `fxprune eval OUT ... --json`")
    rows = held.get("models")
    if rows is None or not _are_rows(rows):
        raise RequestError(
            f"{results} holds no models with a perplexity", "give the output of `fxprune eval OUT ... --json`"
        )
    return with_results(folder, folder.resolve().name, rows, str(held.get("text") or "held-out text"))


def _are_rows(rows: Any) -> bool:
    return (
        isinstance(rows, Sequence)
        and not isinstance(rows, str)
        and bool(rows)
        and all(isinstance(row, Mapping) and isinstance(row.get("perplexity"), Mapping) for row in rows)
    )
