"""The code blocks of the README and of the pages in docs/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fxprune

ROOT = Path(fxprune.__file__).parent

LANGUAGES = ("python", "sh", "text", "toml", "yaml")
"""What a block may be: Python, a shell's command lines, or what is printed. An indented one is for the shell."""


@dataclass(frozen=True)
class Block:
    """One block of code.

    Attributes:
        document: its path from the root.
        line: where its code begins, from 1.
        language: as its fence says, empty when it says nothing.
        text: without the fence or the indent.
    """

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """The lines as a shell puts them together, without prompts."""
        joined = self.text.replace("\\\n", " ").splitlines()
        return [line.strip().removeprefix("$ ") for line in joined if line.strip()]


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(document: str, text: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones that follow an empty line."""
    lines = [*text.splitlines(), ""]
    at = 0
    while at < len(lines):
        fence = re.fullmatch(r" {0,3}```(.*)", lines[at])
        end = at + 1
        if fence:
            while end < len(lines) and lines[end].strip() != "```":
                end += 1
            yield Block(document, at + 2, fence.group(1), "\n".join(lines[at + 1 : end]) + "\n")
            end += 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1]):
            while lines[end].startswith("    "):
                end += 1
            yield Block(document, at + 1, "sh", "\n".join(line[4:] for line in lines[at:end]) + "\n")
        at = end


def blocks() -> list[Block]:
    return [
        block
        for path in documents()
        for block in blocks_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]


def words_of(line: str) -> list[str]:
    """Of a command line, without its comment and without what a shell does with its output."""
    words = shlex.split(line, comments=True)
    return words[: next((i for i, word in enumerate(words) if word in {"|", ">", "2>", "&&"}), len(words))]
