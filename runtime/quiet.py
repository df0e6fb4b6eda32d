"""The libraries underneath, kept from talking."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

_NOISY_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "transformers", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet(*, warn: bool = True) -> Iterator[None]:
    """Inside, torch, transformers and the ONNX libraries log nothing, print nothing and show no progress bars: they
    tell their stages, every operator library that is not installed, and every trial that they refuse.

    Args:
        warn: whether their warnings pass; not where a user's own code runs at inputs that we made up.
    """
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    # What has not been imported by now shows no bar when it is.
    bars: Any = getattr(sys.modules.get("transformers"), "logging", None)
    had_bar = bars is not None and bars.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    if had_bar:
        bars.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            # torch's own pytree code, met while the ONNX exporter copies the signature.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            # torch's own recurrent layers list their weights anew as soon as export puts stand-ins in their place.
            warnings.filterwarnings("ignore", r"The tensor attributes? self\.\S*_flat_weights\[", UserWarning)
            if not warn:
                warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bar:
            bars.enable_progress_bar()
