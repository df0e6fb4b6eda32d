"""Opens what is a regular file, and nothing that waits for a writer, acts when it is opened, or never ends."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_READ_ONLY = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
"""Without waiting: a pipe nobody writes to would hold the program for ever."""


def open_regular(path: Path, *, links: bool) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        path: the file.
        links: whether it may be a link to one.

    Raises:
        OSError: it cannot be opened; it is a directory, a pipe, a socket or a device; or it is a link.
    """
    number = os.open(path, _READ_ONLY if links else _READ_ONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise
