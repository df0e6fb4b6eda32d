"""The built-in model and its text."""

from __future__ import annotations

from pathlib import Path

from .text import text

MODEL_DIR: Path = Path(__file__).parent / "model"
"""A Hugging Face model directory: a Llama of about a million parameters, trained by ``fxprune.demo.train``."""

__all__ = ["MODEL_DIR", "name_of_text", "text"]


def name_of_text(part: str) -> str:
    """What a part of the built-in text is called where texts are listed."""
    return f"built-in {part} text"
