"""What passes ask about the structure of a model, and what they can do to it: two explicit lists."""

from __future__ import annotations

from .couple.coupling import couple
from .drop.taken_out import LayersKept, PartsAbsent
from .manager import Analysis
from .shrink.cut import Cut
from .shrink.tokens_kept import TokensKept
from .turn.values_held import ValuesHeld

ANALYSES: tuple[Analysis, ...] = (Analysis("couple", "coupling", couple),)
"""What passes may need to know."""

DECISIONS: tuple[type[Cut] | type[LayersKept] | type[PartsAbsent] | type[TokensKept] | type[ValuesHeld], ...] = (
    Cut, LayersKept, PartsAbsent, TokensKept, ValuesHeld,
)  # fmt: skip
"""What they can do."""
