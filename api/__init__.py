"""The calls a user makes, each of them a few lines that connect tracer, passes and backends."""

from .evaluation import Measurement, evaluate
from .exporting import export
from .listing import PassInfo, passes
from .pruning import Applied, GroupChange, apply
from .tracing import Hop, Trace, trace

__all__ = [
    "Applied",
    "GroupChange",
    "Hop",
    "Measurement",
    "PassInfo",
    "Trace",
    "apply",
    "evaluate",
    "export",
    "passes",
    "trace",
]
