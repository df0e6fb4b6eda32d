"""The options of the command line for where a model runs."""

from __future__ import annotations

import argparse


def add_placement_options(parser: argparse.ArgumentParser, *, dtype: bool = True) -> None:
    """Add them; ``dtype`` says whether that of the arithmetic is among them."""
    where = parser.add_argument_group("where the model runs; see `fxprune doctor`")
    where.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, or an accelerator such as cuda, cuda:1, mps, xpu; auto (default): the accelerator that torch finds, "
        "else the CPU",
    )
    if dtype:
        where.add_argument(
            "--dtype",
            default="auto",
            metavar="TYPE",
            help="of the arithmetic: float32, bfloat16, float16; auto (default): the checkpoint's on an accelerator, "
            "float32 on the CPU",
        )
    where.add_argument(
        "--offload",
        default="auto",
        metavar="WHERE",
        help="where weights are that are not in use: none (all on the device), memory, disk; auto (default): the first "
        "that fits",
    )
    where.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="choose --offload as if this were free: 4GB, 3.5GiB (default: what is free)",
    )
