"""Brings the weights of a model whose values are elsewhere into memory, one block at a time."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..tensors import tensors_by_every_name
from .blocks import BlockList
from .side_effects import PassesOnMoreError
from .store import InMemory, Shelf, Store

Edit = Callable[[str, torch.Tensor], torch.Tensor]
"""Name and value of a parameter -> the value that it runs with; the given one must not be changed."""


_M_MMAP_THRESHOLD = -3
LARGE = 1 << 20
"""Bytes of a tensor that is mapped on its own."""


class Residence:
    """Fills the parameters of a module from a store, and empties them.

    At rest the parameters are on the meta device. Inside :meth:`outside`, each is one :class:`torch.nn.Parameter` of
    the right shape whose values are there while its block is; before and after they are not numbers, and take no
    memory. Tensors that no block holds alone are there all the time.

    Args:
        model: the module; its buffers have values.
        store: the values, by first name.
        device, dtype: where and in which arithmetic the model runs.
        max_memory: the most memory that may be used, in bytes; None for all that is free.

    Attributes:
        edit: what is done to values when they are brought into memory, beside what the store holds; None for nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        store: Store,
        device: torch.device,
        dtype: torch.dtype,
        max_memory: int | None = None,
    ) -> None:
        self.model, self.store, self.device, self.dtype, self.max_memory = model, store, device, dtype, max_memory
        self.edit: Edit | None = None
        self._shells: dict[str, nn.Parameter] = {}
        self._of_block: dict[str, list[str]] = {}
        self._changed: set[str] = set()
        self._present: Counter[str] = Counter()
        self._depth = 0
        self._order: dict[str, int] = {}
        self._latest = -1
        self._lent = _Lent()
        self._borrowed: dict[str, Hashable] = {}

    def of(self, model: nn.Module, store: Store) -> Residence:
        """The same for another module and its store. Values that both need are in memory once."""
        twin = Residence(model, store, self.device, self.dtype, self.max_memory)
        twin._lent = self._lent
        return twin

    @property
    def states_shelf(self) -> Shelf | None:
        """Where hidden states may wait; None where that is the memory in which they are."""
        return None if self.device.type == "cpu" and isinstance(self.store.shelf, InMemory) else self.store.shelf

    @property
    def in_use(self) -> bool:
        """Whether the code runs inside :meth:`outside`."""
        return self._depth > 0

    @contextmanager
    def outside(self, blocks: BlockList) -> Iterator[None]:
        """Inside, what no block holds alone is in memory, and :meth:`block` may be used.

        Raises:
            PassesOnMoreError: a part of a block is called while the block is not.
        """
        if self._depth:
            yield
            return
        self._depth += 1
        map_large_tensors(self.device)
        holders = blocks.holders(self.model)
        alone = {name: next(iter(found)) for name, found in holders.items() if len(found) == 1}
        self._of_block = {path: [n for n, holder in alone.items() if holder == path] for path in blocks.modules}
        self._order, self._latest = {path: at for at, path in enumerate(blocks.modules)}, -1
        inside = {name for names in self._of_block.values() for name in names}
        try:
            with self._swapped(), self._buffers():
                shared = [name for name in self._shells if name not in inside]
                try:
                    self._fill(shared)
                    with self._watched(blocks):
                        yield
                finally:
                    self._empty(shared)
        finally:
            self._depth -= 1

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, all weights are in memory, and blocks have nothing to bring; those marked by :meth:`keep` go to the
        store afterwards. A value may be that of the store itself: make it private before writing to it."""
        self._depth += 1
        self._of_block = defaultdict(list)
        try:
            with self._swapped(), self._buffers():
                everything = list(self._shells)
                try:
                    self._fill(everything)
                    yield
                finally:
                    self._empty(everything)
                    give_back_memory(self.device)
        finally:
            self._of_block = {}
            self._depth -= 1

    @contextmanager
    def block(self, path: str) -> Iterator[None]:
        """Inside, the weights of a block are in memory; those marked by :meth:`keep` go to the store afterwards."""
        names = [name for name in self._of_block[path] if name in self._shells]
        self._present[path] += 1
        try:
            if self._present[path] == 1:
                self._fill(names)
                self.store.announce(self._of_block.get(self._next_after(path), ()))
            yield
        finally:
            self._present[path] -= 1
            if not self._present[path]:
                self._empty(names)
                give_back_memory(self.device)

    def _next_after(self, path: str) -> str:
        """The block whose turn is probably next: the neighbour, on the way on or back."""
        at, before = self._order.get(path, 0), self._latest
        self._latest = at
        places = list(self._order)
        return places[(at - 1 if at <= before else at + 1) % len(places)] if places else ""

    @contextmanager
    def calling(self, blocks: BlockList) -> Iterator[None]:
        """Inside, the model may be called: a block that is called brings its weights itself."""

        def bringing(path: str, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                with self.block(path):
                    return own(*args, **kwargs)

            return forward

        with ExitStack() as stack:
            for path, block in blocks.modules.items():
                before = vars(block).get("forward")
                stack.callback(_restored, block, before)
                block.forward = bringing(path, block.forward)
            yield

    def keep(self, names: Iterable[str]) -> None:
        """Say that the values of these parameters, which are in memory, have changed."""
        self._changed.update(names)

    def value(self, name: str) -> torch.Tensor:
        """The present value of a tensor, on the device and in the arithmetic's dtype."""
        value = self.store.read(name)
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)

    @contextmanager
    def _watched(self, blocks: BlockList) -> Iterator[None]:
        """Inside, a part of a block that runs without its weights is noticed."""

        def watching(path: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any) -> None:
                if not self._present[path]:
                    raise PassesOnMoreError(path, "is not called itself: its parts are")

            return hook

        with ExitStack() as stack:
            for path, block in blocks.modules.items():
                own = {id(self._shells[name]) for name in self._of_block[path] if name in self._shells}
                for part in block.modules():
                    if part is not block and any(id(weight) in own for weight in part._parameters.values()):
                        stack.callback(part.register_forward_pre_hook(watching(path)).remove)
            yield

    def _fill(self, names: Iterable[str]) -> None:
        for name in names:
            key = self.store.identity(name)
            value = self.value(name) if key is None else self._lent.lend(key, partial(self.value, name))
            self._borrowed[name] = key
            self._shells[name].data = value if self.edit is None else self.edit(name, value)

    def _empty(self, names: Iterable[str]) -> None:
        for name in names:
            shell = self._shells[name]
            if name in self._changed:
                self._changed.discard(name)
                self.store.write(name, shell.data)
            shell.data = self._nothing(shell)
            if (key := self._borrowed.pop(name, None)) is not None:
                self._lent.take_back(key)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """Inside, the module's parameters are shells; yields with all of them empty."""
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        places = [
            (module._parameters, leaf, parameter)
            for module in self.model.modules()
            for leaf, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._shells = {}
        for table, leaf, parameter in places:
            name = first[id(parameter)]
            if name not in self._shells:
                like = torch.empty(parameter.shape, dtype=self._dtype_of(parameter), device="meta")
                self._shells[name] = nn.Parameter(self._nothing(like), requires_grad=parameter.requires_grad)
            table[leaf] = self._shells[name]
        try:
            yield
        finally:
            for table, leaf, parameter in places:
                table[leaf] = parameter
            self._shells = {}

    @contextmanager
    def _buffers(self) -> Iterator[None]:
        """Inside, buffers are on the device, with the values of the store where it has them."""
        held: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        moved: dict[int, torch.Tensor] = {}
        names = {id(tensor): name for name, tensor in reversed(tensors_by_every_name(self.model).items())}
        for module in self.model.modules():
            for leaf, buffer in module._buffers.items():
                if buffer is None:
                    continue
                if id(buffer) not in moved:
                    name = names[id(buffer)]
                    value = self.store.read(name).to(buffer.dtype) if name in self.store else buffer
                    moved[id(buffer)] = value.to(self.device)
                held.append((module._buffers, leaf, buffer))
        try:
            for table, leaf, buffer in held:
                table[leaf] = moved[id(buffer)]
            yield
        finally:
            for table, leaf, buffer in held:
                table[leaf] = buffer

    def _nothing(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor of this shape without memory for values; they are not numbers, so that no one takes them for
        weights."""
        blank = torch.nan if like.is_floating_point() else 0
        return torch.full((), blank, dtype=like.dtype, device=self.device).expand(like.shape)

    def _dtype_of(self, parameter: torch.Tensor) -> torch.dtype:
        return self.dtype if parameter.is_floating_point() else parameter.dtype


class _Lent:
    """Values in memory that several models use at the same time."""

    def __init__(self) -> None:
        self._values: dict[Hashable, torch.Tensor] = {}
        self._users: Counter[Hashable] = Counter()

    def lend(self, key: Hashable, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The value of a key; it is read if nobody has it."""
        if key not in self._values:
            self._values[key] = read()
        self._users[key] += 1
        return self._values[key]

    def take_back(self, key: Hashable) -> None:
        """It is in memory as long as somebody uses it."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key], self._values[key]


def _restored(block: nn.Module, forward: Any) -> None:
    if forward is None:
        vars(block).pop("forward", None)
    else:
        block.forward = forward


def give_back_memory(device: torch.device, generation: int = 0) -> None:
    """Return freed memory to the system. Without it, an allocator keeps some for every block.

    Args:
        device: whose memory.
        generation: objects of this age and younger are looked through for what only holds itself, as by ``gc.collect``.
    """
    gc.collect(generation)
    trim = getattr(_libc(device), "malloc_trim", None)
    if trim is not None:
        trim(0)


def map_large_tensors(device: torch.device) -> None:
    """From now on, let this process's memory for large tensors come from the system, and go back when they go.

    glibc raises its bound with every large piece that is freed, and takes later ones from its heap, where what was
    allocated behind a weight keeps the place of that weight.
    """
    option = getattr(_libc(device), "mallopt", None)
    if option is not None:
        option(_M_MMAP_THRESHOLD, LARGE)


def _libc(device: torch.device) -> Any:
    """The C library, where its allocator is the one of the device: glibc has these functions, musl does not."""
    return ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
