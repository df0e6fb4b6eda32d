"""``python -m fxprune`` is the command ``fxprune``."""

import sys

from .cli import main

sys.exit(main())
