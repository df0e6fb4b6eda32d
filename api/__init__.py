"""The functions that users call. Each connects tracer, passes and backends in a few lines.

A function is imported on first use, since importing everything takes three times as long as ``trace`` needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analyzing.module import analyze_target
    from .analyzing.request import AnalysisResult, analyze
    from .benchmarking.benchmark import bench
    from .benchmarking.drafting import Drafted, bench_draft
    from .benchmarking.timings import Benchmark, BenchmarkResult
    from .demo import Demo, run_demo
    from .evaluating.comparison import Comparison, compare
    from .evaluating.evaluation import evaluate
    from .evaluating.measures import Measurement
    from .exporting import export
    from .listing import FormatInfo, PassInfo, list_formats, list_passes
    from .machine import Machine, examine
    from .modules.named import PrunedTarget, is_named_module, prune_target, refuse_options, trace_target
    from .modules.prune import Pruned, load, prune_module
    from .nested import apply_sizes
    from .pruning.request import Applied, ApplyRequest, GroupChange, apply
    from .pushing import Pushed, push
    from .reporting.request import Reported, report
    from .tracing import Hop, Trace, trace

__all__ = [
    "AnalysisResult",
    "Applied",
    "ApplyRequest",
    "Benchmark",
    "BenchmarkResult",
    "Comparison",
    "Demo",
    "Drafted",
    "FormatInfo",
    "GroupChange",
    "Hop",
    "Machine",
    "Measurement",
    "PassInfo",
    "Pruned",
    "PrunedTarget",
    "Pushed",
    "Reported",
    "Trace",
    "analyze",
    "analyze_target",
    "apply",
    "apply_sizes",
    "bench",
    "bench_draft",
    "compare",
    "evaluate",
    "examine",
    "export",
    "is_named_module",
    "list_formats",
    "list_passes",
    "load",
    "prune_module",
    "prune_target",
    "push",
    "refuse_options",
    "report",
    "run_demo",
    "trace",
    "trace_target",
]

_MODULES = {
    "analyzing.request": ("AnalysisResult", "analyze"),
    "analyzing.module": ("analyze_target",),
    "benchmarking.benchmark": ("bench",),
    "benchmarking.drafting": ("Drafted", "bench_draft"),
    "benchmarking.timings": ("Benchmark", "BenchmarkResult"),
    "demo": ("Demo", "run_demo"),
    "evaluating.comparison": ("Comparison", "compare"),
    "evaluating.evaluation": ("evaluate",),
    "evaluating.measures": ("Measurement",),
    "exporting": ("export",),
    "listing": ("FormatInfo", "PassInfo", "list_formats", "list_passes"),
    "machine": ("Machine", "examine"),
    "modules.prune": ("Pruned", "load", "prune_module"),
    "nested": ("apply_sizes",),
    "pruning.request": ("Applied", "ApplyRequest", "GroupChange", "apply"),
    "modules.named": ("PrunedTarget", "is_named_module", "prune_target", "refuse_options", "trace_target"),
    "pushing": ("Pushed", "push"),
    "reporting.request": ("Reported", "report"),
    "tracing": ("Hop", "Trace", "trace"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
