"""The intermediate representation: graphs, axes, operator rules, groups and plans. Does not use torch or files."""

from .errors import FxpruneError, RequestError
from .plan import Indices, Plan

__all__ = ["FxpruneError", "Indices", "Plan", "RequestError"]
