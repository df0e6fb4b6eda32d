"""How much memory is free: amounts as text, and the count of the system within the limits of control groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from fxprune.ir.errors import RequestError
from fxprune.runtime.place.memory import host_memory, parse_bytes, size_text

GB = 10**9

MEMINFO = (
    "MemTotal:       8000000 kB\nMemFree:         500000 kB\nMemAvailable:   4000000 kB\nHugePages_Total:       0\n"
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GB", 4 * GB), ("3.5GiB", 3_758_096_384), ("512 MB", 512_000_000), ("1kB", 1000), ("1KiB", 1024),
        ("2tb", 2000 * GB), ("1000", 1000), ("7B", 7), (12345, 12345),
    ],
)  # fmt: skip
def test_amounts_are_read(text: str | int, count: int) -> None:
    assert parse_bytes(text, "--max-memory") == count


@pytest.mark.parametrize("text", ["", "GB", "4 apples", "-1GB", "4G", "1e9", "4GB!", True, 2.5j])
def test_what_is_no_amount_is_refused(text: object) -> None:
    with pytest.raises(RequestError, match="is no amount of memory") as error:
        parse_bytes(text, "--max-memory")  # type: ignore[arg-type]
    assert "4GB, 3.5GiB" in error.value.hint


@pytest.mark.parametrize("text", ["0", "0GB", "0.1B"])
def test_nothing_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is no memory at all"):
        parse_bytes(text, "--max-memory")


def test_amounts_are_written_in_a_fitting_unit() -> None:
    assert [size_text(count) for count in (27 * GB, 8.06 * GB, 512e6, 1500, 12)] == [
        "27.0 GB", "8.1 GB", "512.0 MB", "1.5 kB", "12 bytes",
    ]  # fmt: skip


def machine(root: Path, files: Mapping[str, str]) -> Path:
    """The part of a Linux file system that is read."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def test_what_the_kernel_can_give_is_free(tmp_path: Path) -> None:
    found = host_memory(machine(tmp_path, {"proc/meminfo": MEMINFO}))
    assert found is not None
    assert (found.total, found.free, found.limit) == (8_192_000_000, 4_096_000_000, None)


def test_a_control_group_of_version_2_limits_it(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/jobs/one\n",
        "sys/fs/cgroup/memory.stat": "",
        "sys/fs/cgroup/jobs/memory.max": "2000000000\n",
        "sys/fs/cgroup/jobs/memory.current": "1500000000\n",
        "sys/fs/cgroup/jobs/memory.stat": "anon 900000000\ninactive_file 500000000\n",
        "sys/fs/cgroup/jobs/one/memory.max": "max\n",
        "sys/fs/cgroup/jobs/one/memory.current": "1400000000\n",
    }
    found = host_memory(machine(tmp_path, files))
    assert found is not None
    # Of what is used, the files can be given up.
    assert (found.total, found.free, found.limit) == (2 * GB, GB, 2 * GB)


def test_a_control_group_of_version_1_limits_it(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "3:cpuset:/\n2:memory:/not/mounted/here\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "3000000000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "2800000000\n",
        "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 300000000\n",
    }
    found = host_memory(machine(tmp_path, files))
    assert found is not None
    assert (found.free, found.limit) == (500_000_000, 3 * GB)


def test_a_control_group_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/all\n",
        "sys/fs/cgroup/memory/all/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/all/memory.usage_in_bytes": "2800000000\n",
    }
    found = host_memory(machine(tmp_path, files))
    assert found is not None
    assert (found.free, found.limit) == (4_096_000_000, None)


def test_this_machine_has_memory() -> None:
    found = host_memory()
    assert found is None or 0 < found.free <= found.total
