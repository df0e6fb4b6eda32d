"""What may be said about where a model runs, as far as it is a word."""

from __future__ import annotations

AUTO = "auto"
"""Left to fxprune."""
