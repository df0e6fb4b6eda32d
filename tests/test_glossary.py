"""The glossary: short, sorted, each term once."""

from __future__ import annotations

import re
from pathlib import Path

import fxprune

DOCS = Path(fxprune.__file__).parent / "docs"
MOST = 40


def terms() -> list[str]:
    return re.findall(r"^- \*\*(.+?)\*\*", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_at_most_40_terms_sorted_and_unique() -> None:
    found = [term.lower() for term in terms()]
    assert 30 < len(found) <= MOST
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def test_an_entry_is_one_or_two_sentences_and_says_something() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8").partition("\n- ")[2]
    entries = text.split("\n- ")
    assert len(entries) > 30
    for entry in entries:
        term, colon, meaning = " ".join(entry.split()).partition(": ")
        assert colon, term
        assert len(meaning) > 20
        sentences = re.findall(r"[.](?= [A-Z]|$)", meaning.partition(" Code: ")[0])
        assert 1 <= len(sentences) <= 2, entry


def test_the_glossary_is_linked() -> None:
    assert "docs/glossary.md" in DOCS.with_name("README.md").read_text(encoding="utf-8")


def test_every_kind_of_unit_is_named() -> None:
    from fxprune.ir.groups import Kind

    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    assert not [kind.value for kind in Kind if f"`{kind.value}`" not in text]
