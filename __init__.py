"""fxprune: a compiler for structurally smaller models.

import fxprune

fxprune.apply("demo", "taylor{ratio=0.25},lora", out="smaller")
for row in fxprune.evaluate(["demo", "smaller"]):
    print(row.name, row.parameters, row.perplexity)
"""

# Nothing is imported here: `python -m fxprune` reads this file while the working directory is still on the import path.

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .api import (
        analyze,
        apply,
        apply_sizes,
        bench,
        bench_draft,
        evaluate,
        export,
        list_formats,
        list_passes,
        load,
        prune_module,
        report,
        trace,
    )
    from .ir.errors import FxpruneError, RequestError

__all__ = [
    "FxpruneError",
    "RequestError",
    "analyze",
    "apply",
    "apply_sizes",
    "bench",
    "bench_draft",
    "evaluate",
    "export",
    "list_formats",
    "list_passes",
    "load",
    "prune_module",
    "report",
    "trace",
]


def __getattr__(name: str) -> "Any":
    # `import fxprune` stays instant: torch is imported by the first call that needs it.
    if name in ("FxpruneError", "RequestError"):
        from .ir import errors

        return getattr(errors, name)
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
