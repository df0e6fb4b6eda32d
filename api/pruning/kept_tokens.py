"""What holds ids besides the model, once tokens went: the tokenizer, data that passes read, files of the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...backends.copied_files import companions, copy_files
from ...backends.renumbered_files import check_renumbered, renumber_files
from ...passes.data import TokenCut
from ...passes.state import Data
from ...runtime.consent import Consent
from ...runtime.scratch import ScratchDirectory
from ...runtime.vocabulary.kept import Renumbering
from ...tracer.model import ModelSource, load_tokenizer
from ...tracer.texts.fingerprints import TrackedText
from ..inputs.seen_inputs import Tracked
from ..request_checks import CALIBRATION, RECOVERY


class KeptTokens:
    """The tokens of a model on its way through a pipeline.

    Attributes:
        source: its directory.
        renumbering: of the tokens that stayed.
        cut: whether any went.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.renumbering = Renumbering(np.empty(0, dtype=np.int64), 0)
        self.cut = False
        self._folder: ScratchDirectory | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer with all tokens."""
        return load_tokenizer(self.source)

    def keep(self, cut: TokenCut, texts: Mapping[str, Tracked | None], data: Data) -> None:
        """Renumber the texts and other data of a run.

        Args:
            cut: the tokens that stay.
            texts: all data.
            data: what passes read.

        Raises:
            RequestError: the tokenizer cannot be written with these tokens.
            FxpruneError: its class reads something else than was written.
        """
        self.renumbering, self.cut = cut.renumbering, True
        self._folder = ScratchDirectory("fxprune-tokens-")
        folder = self._folder.path
        copy_files(companions(self.source.directory), folder, Consent.nothing(self.source.directory))
        self.write(folder)
        smaller = load_tokenizer(replace(self.source, directory=folder, consent=Consent.nothing(folder), loaded=False))
        check_renumbered(self.tokenizer, smaller, self.renumbering)
        for text in texts.values():
            if isinstance(text, TrackedText):
                text.renumber(smaller, len(cut.renumbering.kept))
            elif text is not None:
                text.renumber(cut.renumbering, cut.arguments)
        data.calibration, data.recovery = texts.get(CALIBRATION), texts.get(RECOVERY)

    def write(self, folder: Path) -> Sequence[str]:
        """Renumber the files that were copied from the source; returns what was left out, in words."""
        return renumber_files(folder, self.tokenizer, self.renumbering)

    def close(self) -> None:
        """Remove the smaller tokenizer from the disk."""
        if self._folder is not None:
            self._folder.remove()
            self._folder = None
