"""The options of the command line for models that are not causal language models."""

from __future__ import annotations

import argparse


def add_example_option(parser: argparse._ActionsContainer, *, modules: bool = True) -> None:
    """Add ``--example``; ``modules`` says whether the command takes a callable that returns a module, too."""
    own = "a package.module:callable, or of a Hugging Face model" if modules else "a Hugging Face model"
    parser.add_argument(
        "--example",
        metavar="INPUTS",
        help=f"example inputs of {own} that is not a causal language model or reads images: 'float32[2,3,224,224]', or "
        "by name 'ids=int64[2,16],mask=bool[2,16]'; the first dimension counts samples. For a Hugging Face model also "
        "a FILE.safetensors or FILE.npz that holds its inputs by name (default: made from its config)",
    )


def add_module_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--example`` and ``--loss``."""
    module = parser.add_argument_group("for package.module:callable, and models that are not causal language models")
    add_example_option(module)
    module.add_argument(
        "--loss",
        metavar="NAME",
        help="package.module:function that takes the module and returns a scalar loss, for scores that need one",
    )
