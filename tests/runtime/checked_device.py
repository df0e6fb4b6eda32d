"""A device in the memory of the host that refuses tensors of any other device, as an accelerator does.

It needs no accelerator and no compiler. Torch keeps a place for devices of others (``PrivateUse1``), and one can be
added in Python. Its tensors are made by DLPack, which lets the same memory be called memory of either device: an
operator runs on the CPU's view of it, after a look at where its operands are. Views, ``.data``, autograd and
``Module.to`` are torch's own.

It cannot be removed from a process again, and is the accelerator that torch finds there: use it in a process of its
own.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "checked"
KEY = "PrivateUse1"

# What DLPack calls the two devices.
_ON_CPU, _ON_DEVICE = 1, 12

_VIEWS = (
    "as_strided", "view", "_reshape_alias", "unfold", "view_as_real", "view_as_complex", "alias", "set_.source_Tensor",
    "set_.source_Storage", "set_.source_Storage_storage_offset",
)  # fmt: skip
"""Operators that share memory between tensors; torch's own kernels do so on any device."""

_ON_CPU_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class _Header(ctypes.Structure):
    """How a ``DLManagedTensor`` begins: the address of the data, the type and the number of the device."""

    _fields_ = (("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _relabelled(tensor: Tensor, device_type: int) -> Tensor:
    """The same memory as a tensor of another device."""
    capsule = torch._C._to_dlpack(tensor)
    _Header.from_address(_pointer_of(capsule, b"dltensor")).device_type = device_type
    return torch._C._from_dlpack(capsule)


def _on_cpu(tensor: Tensor) -> Tensor:
    return _relabelled(tensor, _ON_CPU) if tensor.device.type == NAME else tensor


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on the CPU's view of its operands; refuse operands of several devices, as CUDA does."""
    # A Python number in the place of a tensor arrives as a number.
    wanted = [isinstance(argument.type, torch.TensorType) for argument in operator._schema.arguments]
    args = tuple(
        torch.tensor(arg) if tensor and isinstance(arg, int | float) else arg
        for arg, tensor in zip(args, wanted, strict=False)
    )
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    strangers = [tensor for tensor in tensors if tensor.device.type != NAME and tensor.dim()]
    if strangers or any(isinstance(leaf, torch.Generator) for leaf in leaves):
        where = sorted({str(tensor.device) for tensor in tensors})
        raise RuntimeError(f"{operator.name()}: expected all tensors on one device, found {', '.join(where)}")
    views = {id(tensor): _on_cpu(tensor) for tensor in tensors}
    # An empty output is made larger, which the memory of another tensor cannot be.
    named = [kwargs.get(argument.name) for argument in operator._schema.arguments if argument.is_out]
    outputs = [output for output in named if isinstance(output, Tensor)]
    views |= {id(output): torch.empty(0, dtype=output.dtype) for output in outputs if not output.numel()}
    given = {id(view): tensor for tensor, view in ((t, views[id(t)]) for t in tensors)}

    def inside(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu")
        return views[id(leaf)] if isinstance(leaf, Tensor) else leaf

    def outside(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return given[id(leaf)] if id(leaf) in given else _relabelled(leaf, _ON_DEVICE)

    made = operator(*pytree.tree_map(inside, args), **pytree.tree_map(inside, kwargs))
    for output in outputs:
        if views[id(output)].shape != output.shape:
            output.set_(_relabelled(views[id(output)], _ON_DEVICE))
    return pytree.tree_map(outside, made)


def _resized(tensor: Tensor, size: Any, *, memory_format: Any = None) -> Tensor:
    del memory_format
    larger = torch.empty(size, dtype=tensor.dtype)
    shared = min(larger.numel(), tensor.numel())
    larger.view(-1)[:shared] = _on_cpu(tensor).reshape(-1)[:shared]
    return tensor.set_(_relabelled(larger, _ON_DEVICE))


def _sharing(operator: Any) -> Any:
    return lambda *args, **kwargs: operator.redispatch(_ON_CPU_KEYS, *args, **kwargs)


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``.to()`` and ``copy_()`` come to: the one operator that may take tensors of two devices."""
    del non_blocking
    _on_cpu(target).copy_(_on_cpu(source))
    return target


def _convolved(*args: Any) -> Tensor:
    return _run(torch.ops.aten.convolution.default, *args)


def _convolved_back(gradient: Tensor, x: Tensor, weight: Tensor, *args: Any) -> Any:
    outputs = [gradient.shape[1]]  # extents of a bias, whether there is one or not
    return _run(torch.ops.aten.convolution_backward.default, gradient, x, weight, outputs, *args)


_clone = torch.UntypedStorage.clone


def _cloned(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """For ``copy.deepcopy``: torch would ask an allocator in C++, and there is none."""
    if storage.device.type != NAME:
        return _clone(storage)
    held = torch.empty(0, dtype=torch.uint8, device=NAME).set_(storage)
    return _relabelled(_on_cpu(held).clone(), _ON_DEVICE).untyped_storage()


def add_checked_device() -> list[torch.library.Library]:
    """Add the device ``checked`` to this process; it is there as long as what this returns."""
    _setup_privateuseone_for_python_backend(NAME)
    # Autocast asks for it, also where it is turned off.
    torch.get_device_module(NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
    others, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    others.fallback(_run, KEY)
    for name in _VIEWS:
        packet, _, overload = name.partition(".")
        aten.impl(name, _sharing(getattr(getattr(torch.ops.aten, packet), overload or "default")), KEY)
    aten.impl("_copy_from", _copied, KEY)
    aten.impl("resize_", _resized, KEY)
    aten.impl("convolution_overrideable", _convolved, KEY)
    aten.impl("convolution_backward_overrideable", _convolved_back, KEY)
    aten.impl("_local_scalar_dense", lambda tensor: torch.ops.aten._local_scalar_dense(_on_cpu(tensor)), KEY)
    torch.UntypedStorage.clone = _cloned  # type: ignore[method-assign]
    torch.accelerator.synchronize = lambda *_: None  # there is nothing to wait for
    return [others, aten]
