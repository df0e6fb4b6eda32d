"""What an error says, in one line."""

from __future__ import annotations

import pytest

from fxprune.ir.errors import class_and_first_line, first_line, last_line


@pytest.mark.parametrize(
    ("error", "line", "with_class"),
    [
        (ValueError("no such thing\nand more"), "no such thing", "ValueError: no such thing"),
        (ValueError("\n  indented  \n"), "indented", "ValueError: indented"),
        (RuntimeError("Errors in loading:\n\tsize mismatch\nthird"), "Errors in loading: size mismatch", None),
        (RuntimeError("alone:"), "alone:", None),
        (AssertionError(), "AssertionError", "AssertionError"),
        (AssertionError(" \n"), "AssertionError", "AssertionError"),
    ],
)
def test_an_error_in_one_line(error: Exception, line: str, with_class: str | None) -> None:
    assert first_line(error) == line
    assert class_and_first_line(error) == (with_class or f"RuntimeError: {line}")


@pytest.mark.parametrize(
    ("text", "line"), [("Traceback:\n  File x\nKeyError: 'a'\n\n", "KeyError: 'a'"), ("", ""), (" \n ", "")]
)
def test_the_last_line_of_a_traceback_is_the_error(text: str, line: str) -> None:
    assert last_line(text) == line
