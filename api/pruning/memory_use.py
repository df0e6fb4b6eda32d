"""What a model of transformers takes where it is used, for budgets of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from ...ir.cache import CacheGraph
from ...ir.errors import RequestError
from ...passes.select.costs import itemsize
from ...runtime.dtypes import DTYPES
from ...runtime.tensors import twin
from ...tracer.cache import trace_cache
from ...tracer.model import ModelSource, build_meta
from ..model_call import ModelCall

if TYPE_CHECKING:
    from .stored_precision import StoredDtypes


class Stored(Protocol):
    """A model on its way through a pipeline, as :class:`.model_run.ModelRun`."""

    source: ModelSource
    model_call: ModelCall
    dtypes: StoredDtypes


class MemoryUse:
    """Weights as they are in the files, and the cache of a model that is called with tokens."""

    def __init__(self, work: Stored) -> None:
        self._work = work

    @property
    def has_cache(self) -> bool:
        """Whether it is a causal language model that is called with tokens alone."""
        return self._work.model_call.language

    @property
    def cache_itemsize(self) -> int:
        """Bytes of an element of the cache, in the dtype of most weights in the files."""
        return self._work.dtypes.dtype.itemsize

    def itemsize(self, name: str, dtype: str) -> int:
        """Bytes of an element of a tensor as it is stored; whatever holds no floating-point numbers keeps its dtype."""
        dtypes = self._work.dtypes
        if dtype in DTYPES and not DTYPES[dtype].is_floating_point:
            return itemsize(dtype)
        return dtypes.own.get(name, dtypes.dtype).itemsize

    def cache(self, context: int, model: torch.nn.Module | None) -> CacheGraph:
        """The graph of the model with its cache as the result; of the one before any pass when None.

        Raises:
            RequestError: the context is longer than the model reads.
            FxpruneError: as :func:`~fxprune.tracer.cache.trace_cache`.
        """
        config = self._work.model_call.config
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and context > longest:
            raise RequestError(
                f"the target is for a context of {context:,} tokens, and the model reads {longest:,}",
                f"give at most {longest}",
            )
        if model is None:
            return trace_cache(build_meta(config, consent=self._work.source.consent), context)
        return trace_cache(twin(model, "meta"), context)
