"""Integers that decide what runs: where the images of a text are, and how large they are.

A model of images and text reads such inputs with Python: how many patches an image has, which positions of the text
wait for it. ``torch.export`` traces tensors without values and cannot go on there. Here these inputs are constants of
the program, and a copy of their values goes along with every tensor that is computed from them alone, so that a
question about a value has an answer while everything else is traced as before. The graph holds for texts with images
at the same places and of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

_ANSWERS = frozenset({
    "item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__bool__", "__int__", "__float__", "__index__",
    "__contains__",
})  # fmt: skip
"""Functions that read values."""
_COUNTS = frozenset({
    "nonzero", "argwhere", "masked_select", "unique", "_unique_impl", "_return_output", "_return_counts",
    "unique_consecutive", "_consecutive_return_output", "bincount", "repeat_interleave",
})  # fmt: skip
"""Functions whose result has an extent that depends on values."""
_FILLED = frozenset({
    "arange", "zeros", "ones", "full", "tensor", "as_tensor", "eye", "linspace", "zeros_like", "ones_like", "full_like",
    "new_zeros", "new_ones", "new_full", "empty", "empty_like", "new_empty",
})  # fmt: skip
"""Functions whose result holds known values, whatever tensors they are given."""
_SIZED = frozenset({
    "arange", "zeros", "ones", "full", "tensor", "as_tensor", "eye", "empty", "view", "reshape", "expand", "repeat",
    "tile", "narrow", "split", "chunk", "unflatten", "interpolate", "pad", "range", "tensor_split", "split_with_sizes",
    "linspace",
})  # fmt: skip
"""Functions that take numbers, for which a tensor with one element will do."""
_LIKE = frozenset({"to", "type_as", "expand_as"})
"""Functions that give a tensor the dtype, device or shape of another."""
_FEW = 1 << 22
"""Elements of a tensor whose values are kept at most: masks of long texts are below it."""


class KnownValues(TorchFunctionMode):
    """Follows the values of tensors that are computed from known ones alone."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def constant(self, values: Tensor, device: torch.device) -> Tensor:
        """A tensor of the traced program that holds ``values``, a tensor on the CPU."""
        made = values.clone().to(device)
        self.follow(made, values)
        return made

    def follow(self, traced: Tensor, values: Tensor) -> None:
        """Follow a tensor that stays an input of the traced program, and has these values in the example."""
        if values.numel() <= _FEW:
            self._held[id(traced)] = (traced, values)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = _tensors((args, kwargs))
        known = [tensor for tensor in tensors if id(tensor) in self._held]
        if tensors and len(known) == len(tensors):
            return self._all_known(func, name, args, kwargs)
        if name in _FILLED:
            return self._filled(func, name, args, kwargs)
        if known:
            return self._mixed(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _all_known(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name in _ANSWERS:
            return self._really(func, args, kwargs)
        if name in _COUNTS or (name == "where" and len(args) == 1):
            device = _tensors((args, kwargs))[0].device
            found = self._really(func, args, kwargs)
            return pytree.tree_map_only(Tensor, lambda values: self.constant(values, device), found)
        at = (args[0], self._index(args[1]), *args[2:]) if name in ("__getitem__", "__setitem__") else args
        made = self._as_numbers(name, func, at, kwargs)
        if _tensors(made) or name == "__setitem__":
            self._pair(made, self._really(func, args, kwargs))
        return made

    def _filled(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        made = self._as_numbers(name, func, args, kwargs)
        if isinstance(made, Tensor) and made.numel() <= _FEW:
            shaped = pytree.tree_map_only(Tensor, self._shaped, (args, kwargs))
            self._pair(made, self._really(func, *shaped))
        return made

    def _shaped(self, tensor: Tensor) -> Tensor:
        """The values of a tensor, or anything of its shape."""
        if id(tensor) in self._held:
            return tensor
        with _disable_current_modes():
            return torch.zeros((), dtype=tensor.dtype).expand(tuple(map(int, tensor.shape)))

    def _mixed(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        rewritten = _REWRITTEN.get(name.removesuffix("_"))
        found = rewritten(self, *args, **kwargs) if rewritten is not None else None
        if found is not None:
            return args[0].copy_(found) if name.endswith("_") else found
        if name in ("__getitem__", "__setitem__"):
            args = (args[0], self._index(args[1]), *args[2:])
        if name in _LIKE and self.knows(args[0]):
            made = func(*args, **kwargs)
            with _disable_current_modes():
                self.follow(made, self.values(args[0]).to(made.dtype).expand(made.shape))
            return made
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            self._forget(args[0])
        return self._as_numbers(name, func, args, kwargs)

    def _index(self, index: Any) -> tuple[Any, ...]:
        """An index whose known masks are positions, and whose known numbers are numbers."""
        found: list[Any] = []
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, slice):
                found.append(slice(*(self._number(end) for end in (part.start, part.stop, part.step))))
            elif self.knows(part) and part.dtype in (torch.bool, torch.uint8) and part.dim():
                found += self.positions(part)
            elif isinstance(part, list | tuple):
                found.append([self._number(one) for one in part])
            else:
                found.append(self._number(part))
        return tuple(found)

    def positions(self, mask: Tensor) -> list[Tensor]:
        """Where a known mask is true: one tensor of positions for every dimension."""
        with _disable_current_modes():
            where = self.values(mask).nonzero(as_tuple=True)
        return [self.constant(axis, mask.device) for axis in where]

    def values(self, tensor: Tensor) -> Tensor:
        """The values of a known tensor, on the CPU."""
        return self._held[id(tensor)][1]

    def knows(self, value: Any) -> bool:
        """Whether it is a tensor whose values are known."""
        return isinstance(value, Tensor) and id(value) in self._held

    def _number(self, value: Any) -> Any:
        if self.knows(value) and not value.dim() and not value.is_floating_point() and value.dtype is not torch.bool:
            return self._really(torch.Tensor.item, (value,), {})
        return value

    def _as_numbers(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function in the traced program, with numbers in the place of known tensors where it takes numbers."""
        if name in _SIZED and _tensors((args, kwargs)):
            number = self._any_number if name in _FILLED else self._number
            args, kwargs = pytree.tree_map_only(Tensor, number, (args, kwargs))
        return func(*args, **kwargs)

    def _any_number(self, value: Tensor) -> Any:
        return self._really(torch.Tensor.item, (value,), {}) if self.knows(value) and not value.dim() else value

    def _really(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function on the values, outside the trace."""
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda tensor: self.values(tensor) if id(tensor) in self._held else tensor, (args, kwargs)
        )
        args = tuple(torch.device("cpu") if isinstance(arg, torch.device) else arg for arg in args)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        with _disable_current_modes():
            return func(*args, **kwargs)

    def _pair(self, made: Any, values: Any) -> None:
        for tensor, value in zip(_tensors(made), _tensors(values), strict=False):
            if tensor.shape == value.shape:
                self.follow(tensor, value)

    def _forget(self, tensor: Any) -> None:
        """A tensor is written to with unknown values: neither it nor a view of the same memory is known any more."""
        if not self.knows(tensor):
            return
        memory = self.values(tensor).untyped_storage().data_ptr()
        gone = [key for key, (_, held) in self._held.items() if held.untyped_storage().data_ptr() == memory]
        for key in gone:
            del self._held[key]

    def vmap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.vmap``; a function of known values alone is computed outside the trace, whose result is a constant.

        Masks are made so, and what a trace records of it has no meaning outside of ``torch.vmap``.
        """

        def vmap(func: Callable[..., Any], *how: Any, **named: Any) -> Callable[..., Any]:
            mapped = original(func, *how, **named)

            def call(*args: Any, **kwargs: Any) -> Any:
                tensors = _tensors((args, kwargs))
                if not tensors or not all(map(self.knows, tensors)):
                    return mapped(*args, **kwargs)
                found = self._computed(mapped, args, kwargs)
                if any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in _tensors(found)):
                    return mapped(*args, **kwargs)  # it also reads what is not known
                device = tensors[0].device
                return pytree.tree_map_only(Tensor, lambda values: self.constant(values, device), found)

            return call

        return vmap

    def _computed(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call Python code on the values, outside the trace; known tensors that it reads otherwise are values too."""
        with _outside(PreDispatchTorchFunctionMode, KnownValues), _ValuesOf(self):
            return self._really(function, args, kwargs)


@contextmanager
def _outside(*kinds: type) -> Iterator[None]:
    """Inside, modes of some kinds are not asked."""
    stack = [_pop_mode() for _ in range(torch._C._len_torch_function_stack())][::-1]
    kept = [mode for mode in stack if not isinstance(mode, kinds)]
    for mode in kept:
        _push_mode(mode)
    try:
        yield
    finally:
        for _ in kept:
            _pop_mode()
        for mode in stack:
            _push_mode(mode)


class _ValuesOf(TorchFunctionMode):
    """Inside, known tensors are their values."""

    def __init__(self, known: KnownValues) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda t: self.known.values(t) if self.known.knows(t) else t, (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _scattered(known: KnownValues, operand: Tensor, mask: Any, source: Any) -> Tensor | None:
    """``masked_scatter`` with a mask that takes whole rows: the rows are written at their positions."""
    if not known.knows(mask) or not isinstance(operand, Tensor) or not operand.dim():
        return None
    with _disable_current_modes():
        values = known.values(mask)
        if values.dim() == operand.dim() and values.shape[-1] > 1:
            if not bool((values.all(-1) == values.any(-1)).all()):
                return None
            values = values[..., :1]
        if values.dim() != operand.dim() or values.shape[-1] != 1:
            return None
        rows = values[..., 0].expand(operand.shape[:-1]).nonzero(as_tuple=True)
    count = int(rows[0].numel())
    width = int(operand.shape[-1])
    if source.numel() < count * width:
        return None
    written = source if source.dim() and source.shape[-1] == width else source.reshape(-1, width)
    written = written.flatten(0, -2) if written.dim() > 2 else written
    return operand.index_put([known.constant(axis, mask.device) for axis in rows], written[:count])


def _chosen(known: KnownValues, operand: Tensor, mask: Any) -> Tensor | None:
    """``masked_select`` with a known mask."""
    if not known.knows(mask) or mask.shape != operand.shape:
        return None
    chosen: Tensor = operand[tuple(known.positions(mask))]
    return chosen


def _repeated(
    known: KnownValues, operand: Tensor, repeats: Any = None, dim: int | None = None, **_: Any
) -> Tensor | None:
    """``repeat_interleave`` with known counts."""
    if not known.knows(repeats) or dim is None:
        return None
    with _disable_current_modes():
        counts = known.values(repeats).expand(operand.shape[dim])
        rows = torch.arange(operand.shape[dim]).repeat_interleave(counts)
    return operand.index_select(dim, known.constant(rows, operand.device))


_REWRITTEN: Mapping[str, Callable[..., Tensor | None]] = {
    "masked_scatter": _scattered,
    "masked_select": _chosen,
    "repeat_interleave": _repeated,
}
"""Functions that a known mask or known counts make functions of positions."""


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@contextmanager
def known_inputs(
    model: nn.Module, inputs: Mapping[str, Tensor], constants: Collection[str] = ()
) -> Iterator[KnownValues]:
    """Inside, the values of some of a model's inputs are known while it is traced.

    Args:
        model: any module that is called with them by name.
        inputs: on the CPU.
        constants: names of those that are constants of the program; the others stay its inputs.
    """
    mode = KnownValues()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def give(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        for name, values in inputs.items():
            if name in constants:
                kwargs[name] = mode.constant(values, device)
            elif isinstance(values, Tensor):
                mode.follow(kwargs[name], values)
        return args, kwargs

    handle = model.register_forward_pre_hook(give, with_kwargs=True)
    original = torch.vmap
    try:
        torch.vmap = mode.vmap(original)
        with mode:
            yield mode
    finally:
        torch.vmap = original
        handle.remove()


def whole_numbers(inputs: Mapping[str, Any]) -> Iterable[str]:
    """Names of the inputs that hold integers or booleans."""
    return [n for n, t in inputs.items() if isinstance(t, Tensor) and not t.is_floating_point() and not t.is_complex()]
