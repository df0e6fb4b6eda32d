"""``python -m fxprune`` is the command ``fxprune``."""

import os
import sys


def leave_working_directory() -> None:
    """Take the working directory from the import path, where ``python -m`` puts it first: it may be a download.

    What ``PYTHONPATH`` names by an absolute path stays.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was deleted, and nothing can be imported from it
        return
    if here not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        sys.path[:] = [path for path in sys.path if os.path.normpath(os.path.join(here, path)) != here]


if __name__ == "__main__":
    leave_working_directory()

    from .cli import main

    sys.exit(main())
