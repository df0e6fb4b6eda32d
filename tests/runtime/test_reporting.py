"""Counted work, and who is told of it."""

from __future__ import annotations

import time

import pytest

from fxprune.runtime.reporting import Count, counted, counting, listening


def test_nobody_is_told_unless_asked(capfd: pytest.CaptureFixture[str]) -> None:
    with counting("steps", 2) as advance:
        advance(loss=1.0)
    assert list(counted("ab", "letters")) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


def test_a_listener_is_told_of_the_beginning_every_item_and_the_end() -> None:
    seen: list[tuple[int, int | None, bool]] = []
    with listening(lambda count: seen.append((count.done, count.total, count.ended))):
        assert list(counted([7, 8], "numbers")) == [7, 8]
    assert seen == [(0, 2, False), (1, 2, False), (2, 2, False), (2, 2, True)]
    list(counted([7, 8], "numbers"))
    assert len(seen) == 4, "nobody listens any more"


def test_work_within_counted_work_is_not_told_of_and_what_comes_after_is() -> None:
    units: list[str] = []
    with listening(lambda count: units.append(count.unit)):
        for _ in counted("a", "outer"):
            list(counted("xyz", "inner"))
        list(counted((), "next"))
    assert units == ["outer", "outer", "outer", "next", "next"]


def test_after_an_error_the_next_work_is_told_of() -> None:
    units: list[str] = []
    with listening(lambda count: units.append(count.unit)):
        with pytest.raises(ZeroDivisionError), counting("broken"):
            raise ZeroDivisionError
        list(counted((), "next"))
    assert units == ["broken", "broken", "next", "next"]


def test_the_time_left_is_that_of_what_was_done_here() -> None:
    count = Count("steps", 10, done=6, first=4, started=time.monotonic() - 4)
    assert count.seconds_left == pytest.approx(8, abs=0.5), "2 steps took 4 s, and 4 are left"
    assert Count("steps", 10).seconds_left is None
    assert Count("steps", None, done=3).seconds_left is None


def test_work_that_goes_on_does_not_count_what_another_run_did() -> None:
    seen: list[Count] = []
    with listening(seen.append), counting("steps") as advance:
        advance(51, total=60, loss=2.5)
    assert (seen[-1].first, seen[-1].done, seen[-1].total, seen[-1].loss) == (50, 51, 60, 2.5)
