"""The rows of a data set. Only its own files are read, whatever its ``README.md`` names, and only texts in them."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...ir.errors import RequestError
from ...runtime.scratch import ScratchDirectory
from .files import JSON_SUFFIXES, decode_file, json_rows, row_suffix

if TYPE_CHECKING:
    from datasets import DatasetBuilder

_SETTINGS = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""What ``datasets`` reads to find out which files hold the rows."""

_TABLE_FORMATS = ("arrow", "cache", "csv", "json", "parquet", "text")
"""Formats whose files hold the rows themselves. Others lead to further files, or are decoded to find the rows."""

_HUB = "hf://datasets/"

_NULL_ROW = re.compile(r"(?:^|[\n\[,])[ \t]*null[ \t]*(?:$|[\n\],])")
"""What a file of JSON has where one of its rows is null, and perhaps where none is."""


@contextmanager
def load_rows(name: str, config: str | None, split: str) -> Iterator[Any]:
    """The ``datasets.Dataset`` of a split, while the block runs.

    What ``datasets`` keeps of a directory goes with the block; a data set of the Hub stays in its cache.

    Args:
        name: a directory, or an id of the Hub.
        config: the configuration in its ``README.md``; the only one when None.
        split: the split.

    Raises:
        RequestError: something that would be read is not in that directory or on the Hub, or is no regular file; or the
            files have a format that is not a table of values.
        Exception: of any class, where ``datasets`` cannot load it.
    """

    folder = Path(name) if Path(name).is_dir() else None
    if folder is not None:
        for file in _SETTINGS:
            if (folder / file).is_symlink() or (folder / file).exists():
                check_inside(str(folder / file), folder)
    with ExitStack() as stack:
        scratch = None if folder is None else stack.enter_context(ScratchDirectory("fxprune-rows-"))
        builder = _builder(name, config, folder, None if scratch is None else str(scratch))
        yield builder.as_dataset(split=split)


def _builder(name: str, config: str | None, folder: Path | None, cache: str | None) -> DatasetBuilder:
    """What reads a data set, after it has read it."""
    import datasets

    kept = {} if cache is None else {"cache_dir": cache}
    builder: DatasetBuilder = datasets.load_dataset_builder(name, config, **kept)
    kind = type(builder).__module__.split(".")
    if kind[:2] != ["datasets", "packaged_modules"] or kind[2] not in _TABLE_FORMATS:
        raise RequestError(
            f"the data set {name} has files of the format {kind[-1]!r}",
            f"give texts as one of {', '.join(form for form in _TABLE_FORMATS if form != 'cache')}",
        )
    for source in _data_files(builder):
        if folder is not None:
            check_inside(source, folder)
        elif not source.startswith(_HUB):
            raise RequestError(
                f"the data set {name} reads {source}, which is not on the Hub",
                "a data set of the Hub could have any file of yours read so; download it, and give the directory",
            )
    if cache is not None and kind[2] == "json":
        _replace_null_rows(builder, Path(cache))
    builder.download_and_prepare()
    return builder


def _replace_null_rows(builder: DatasetBuilder, scratch: Path) -> None:
    """Have copies read of JSON files in which a row is null: pyarrow ends the process where the first one is so. In a
    copy, such a row is an object whose fields are all null. Files of such rows alone come last: `datasets` takes the
    types of the fields from the first file.

    Raises:
        RequestError: a file with such a row is damaged.
    """
    lists = list((builder.config.data_files or {}).values())
    places = [(files, at) for files in lists for at in range(len(files)) if _has_null_row(Path(files[at]))]
    if not places or getattr(builder.config, "field", None) is not None:  # rows are further inside
        return
    files_of_rows = [Path(file) for file in _data_files(builder) if row_suffix(Path(file)) in JSON_SUFFIXES]
    objects = (row for file in files_of_rows for _, row in json_rows(file) if isinstance(row, dict))
    fields = dict.fromkeys(next(objects, {"text": None}))
    hollow = set()
    for number, (files, at) in enumerate(places):
        copy = scratch / f"rows-{number}.jsonl"
        rows = [row for _, row in json_rows(Path(files[at]))]
        copy.write_text("".join(json.dumps(fields if row is None else row) + "\n" for row in rows), encoding="utf-8")
        files[at] = str(copy)
        if all(row is None for row in rows):
            hollow.add(files[at])
    for files in lists:
        files.sort(key=hollow.__contains__)


def _has_null_row(file: Path) -> bool:
    if row_suffix(file) not in JSON_SUFFIXES:
        return False
    try:
        text = decode_file(file)
    except RequestError:  # `datasets` leaves an empty file out
        return False
    return bool(_NULL_ROW.search(text)) and any(row is None for _, row in json_rows(file))


def text_columns(rows: Any, names: tuple[str, ...], spec: str) -> Any:
    """The columns of a ``datasets.Dataset`` that are read; nothing decodes the others, which may lead to other files.

    Args:
        rows: from :func:`load_rows`.
        names: of columns.
        spec: the data set, for messages.

    Raises:
        RequestError: a column holds, at any depth, something else than plain values: images or sounds, say.
    """

    for name in names:
        if not _plain(feature := rows.features[name]):
            raise RequestError(
                f"'{spec}': field '{name}' is not a string but {type(feature).__name__}",
                "name a field that holds texts",
            )
    return rows.select_columns(list(names))


def _plain(feature: Any) -> bool:
    """Whether a column holds plain values, or lists and objects of them, as conversations are."""
    import datasets

    if isinstance(feature, dict):
        return all(map(_plain, feature.values()))
    if isinstance(feature, list):
        return all(map(_plain, feature))
    if isinstance(feature, datasets.List | datasets.LargeList | datasets.Sequence):
        return _plain(feature.feature)
    return isinstance(feature, datasets.Value) or type(feature).__name__ == "Json"


def _data_files(builder: DatasetBuilder) -> Iterator[str]:
    """Paths or addresses of the files that hold the rows of every split. They are known before one is opened."""
    for files in (builder.config.data_files or {}).values():
        yield from map(str, files)


def check_inside(file: str, folder: Path) -> None:
    """Refuse a file that a data set names, when it is not a regular file in the directory of the data set.

    Raises:
        RequestError: naming the file.
    """
    try:
        end = Path(file).resolve(strict=True)
        regular = stat.S_ISREG(end.stat().st_mode)
    except (OSError, RuntimeError, ValueError):  # an address, or a link that leads nowhere
        end, regular = None, False
    if end is None or not end.is_relative_to(folder.resolve()):
        raise RequestError(
            f"the data set in {folder} reads {file}, which is not in that directory",
            "a downloaded data set could have any file of yours read so; if you want that, copy the file there",
        )
    if not regular:
        raise RequestError(f"{file} is a pipe, a socket, a device or a directory", "remove it, or give the text itself")
