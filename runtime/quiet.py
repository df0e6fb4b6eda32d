"""The libraries underneath, kept from talking."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging

_NOISY_LOGGERS = ("torch.onnx", "torch.export", "transformers", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet(*, warn: bool = True) -> Iterator[None]:
    """Inside, torch, transformers and the ONNX libraries log nothing, print nothing and show no progress bars: they
    tell their stages, every operator library that is not installed, and every trial that they refuse.

    Args:
        warn: whether their warnings pass; not where a user's own code runs at inputs that we made up.
    """
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    had_bar = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
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
            transformers_logging.enable_progress_bar()
