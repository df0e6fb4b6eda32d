"""The artifact of a pruned module: safetensors and an exported program; and loading an artifact of either kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ...ir.errors import FxpruneError, RequestError, first_line, last_line
from ...ir.plan import Plan
from ...ir.repairs import Repairs, repair, repairs_integers
from ...runtime.child_process import start_python
from ...runtime.model.fast_path import without_fast_path
from ...runtime.quiet import quiet
from ...runtime.scratch import ScratchDirectory
from ...runtime.streaming.left_as_found import left_as_found
from ...runtime.tensors import slice_tensors, tensors_by_name
from ...runtime.tolerances import relative_difference, same_program
from ..artifact import MODULE_KIND, PLAN, PROGRAM, RECORD, read_plan, write_json, write_plan
from ..atomic_directory import atomic_directory, check_room, check_target
from ..digests import digests
from ..own_names import by_attributes, rename_tensors
from ..seen import Seen
from ..verify import VerificationError
from .plain_output import plain_output
from .read_program import read_program

MODULE_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class SavableModule:
    """A module that is ready to be written.

    Attributes:
        module: the pruned module.
        args, kwargs: its example inputs.
        plan: what was removed from the original.
        repairs: attributes that were changed to fit.
        any_batch: whether the first dimension of every input may vary.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    plan: Plan
    repairs: Repairs
    any_batch: bool


@dataclass(frozen=True)
class SavedModule:
    """What was written.

    Attributes:
        path: the directory.
        any_batch: whether the exported program takes any number of samples.
        checks: the checks made in a fresh process, with the largest difference.
    """

    path: Path
    any_batch: bool
    checks: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {"path": str(self.path), "any_batch": self.any_batch, "checks": dict(self.checks)}


@without_fast_path()
def save_module(
    product: SavableModule, out: Path, *, report: Mapping[str, Any], force: bool, seen: Seen | None = None
) -> SavedModule:
    """Write a module: ``model.safetensors``, ``model.pt2``, ``fxprune.plan``, ``fxprune.json``.

    Before the directory is moved into place, a fresh Python process without fxprune loads the exported program, and
    its outputs are compared with those of the module.

    Raises:
        RequestError: ``out`` cannot be written.
        FxpruneError: the module cannot be exported.
        VerificationError: the program does not load, or its outputs differ.
    """
    size = sum(t.numel() * t.element_size() for t in (*product.module.parameters(), *product.module.buffers()))
    if seen is None:
        seen = check_target(out, force=force, needed=2 * size)
    else:
        check_room(out, 2 * size)
    training = product.module.training
    product.module.eval()
    try:
        program, any_batch = _export(product)
        with atomic_directory(out, force=force, seen=seen) as folder:
            # A tensor that several modules share is stored once.
            save_model(product.module, str(folder / MODULE_WEIGHTS), metadata={"format": "pt"})
            program._example_inputs = None  # they would be a pickle
            torch.export.save(program, folder / PROGRAM)
            write_plan(folder, product.plan)
            checks = _check(product, folder)
            record = {
                "fxprune": version("fxprune"),
                "torch": torch.__version__,
                "artifact": MODULE_KIND,
                **report,
                "any_batch": any_batch,
                "repairs": product.repairs.to_json(),
                "checks": checks,
                "loads_without_pickle": _read_again(product, folder),
                "files": digests(folder, MODULE_WEIGHTS, PROGRAM, PLAN),
            }
            write_json(folder / RECORD, record)
    finally:
        product.module.train(training)
    return SavedModule(out.resolve(), any_batch, checks)


def _export(product: SavableModule) -> tuple[ExportedProgram, bool]:
    """The exported program; for any number of samples if the module accepts that and torch can prove it."""
    if product.any_batch:
        try:
            return _exported(product, free=True), True
        except Exception:  # nosec B110 # torch may fail to prove this for any number; the example's may still work
            pass
    try:
        return _exported(product, free=False), False
    except Exception as error:
        raise FxpruneError(
            f"torch.export cannot export the pruned module: {first_line(error)}",
            "run again with --debug for the full traceback",
        ) from error


def _exported(product: SavableModule, *, free: bool) -> ExportedProgram:
    def dynamic(leaf: Any) -> Any:
        return {0: Dim.DYNAMIC} if isinstance(leaf, torch.Tensor) else None

    shapes = None
    # Copies, since torch marks the tensors whose dimensions may vary, and a failed export leaves its marks on them.
    args, kwargs = pytree.tree_map_only(torch.Tensor, _copied, (product.args, dict(product.kwargs)))
    if free:
        named = pytree.tree_map(dynamic, args), pytree.tree_map(dynamic, kwargs)
        shapes = {**_by_name(product.module, named[0]), **named[1]}
    module = by_attributes(product.module)
    hook = module.register_forward_hook(lambda _module, _args, output: plain_output(output))
    try:
        with quiet(), torch.no_grad(), left_as_found(module):
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    finally:
        hook.remove()
    if module is product.module:
        rename_tensors(program)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it holds paths of this machine
    return program


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


def _by_name(module: nn.Module, values: tuple[Any, ...]) -> dict[str, Any]:
    import inspect

    return dict(inspect.signature(module.forward).bind(*values).arguments)


_SCRIPT = """
import json, sys, torch
from safetensors.torch import load_file, save_file
sys.modules["fxprune"] = None
request = json.loads(sys.argv[1])
held = load_file(request["inputs"])
def real(x):
    if isinstance(x, dict):
        return held[x["tensor"]] if "tensor" in x else {k: real(v) for k, v in x["dict"].items()}
    return type(x)(map(real, x)) if isinstance(x, list) else x
program = torch.export.load(request["program"])
with torch.no_grad():
    made = program.module()(*real(request["args"]), **{k: real(v) for k, v in request["kwargs"].items()})
leaves = [x for x in torch.utils._pytree.tree_leaves(made) if isinstance(x, torch.Tensor)]
save_file({str(i): x.clone().contiguous() for i, x in enumerate(leaves)}, request["outputs"])
"""


def _check(product: SavableModule, folder: Path) -> dict[str, Any]:
    """Run the program on the example inputs in a process without fxprune, and compare its outputs."""
    held: dict[str, torch.Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            held[f"t{len(held)}"] = value.detach().cpu().clone().contiguous()
            return {"tensor": f"t{len(held) - 1}"}
        if isinstance(value, Mapping):
            return {"dict": {key: plain(item) for key, item in value.items()}}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    with ScratchDirectory("fxprune-verify-") as scratch:
        inputs, outputs = Path(scratch, "inputs.safetensors"), Path(scratch, "outputs.safetensors")
        request = {
            "args": [plain(value) for value in product.args],
            "kwargs": {key: plain(value) for key, value in product.kwargs.items()},
            "inputs": str(inputs),
            "outputs": str(outputs),
            "program": str(folder / PROGRAM),
        }
        save_file(held, inputs)
        with start_python(["-c", _SCRIPT, json.dumps(request)], scratch) as process:
            try:
                _, complaint = process.communicate()
            finally:
                process.kill()  # a signal that ends this process ends that one too
        if process.returncode != 0:
            raise VerificationError(
                f"a fresh Python process cannot run the written program: {last_line(complaint) or process.returncode}",
                "this is a bug in fxprune; please report it with the module",
            )
        found = load_file(outputs)
    with torch.no_grad():
        output = product.module(*product.args, **product.kwargs)
    expected = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return _compare([found[str(number)] for number in range(len(found))], expected)


def _compare(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Compare the outputs of the written program with those of the module."""
    if len(found) != len(expected):
        raise VerificationError(
            f"the written program returns {len(found)} tensors, the module {len(expected)}",
            "this is a bug in fxprune; please report it with the module",
        )
    worst, limit = 0.0, 0.0
    for got, tensor in zip(found, expected, strict=True):
        limit = max(limit, same_program(tensor.dtype))
        worst = max(worst, relative_difference(got, tensor.cpu()))
    if not worst <= limit:
        raise VerificationError(
            f"the outputs of the written program and of the module differ by {worst:.3g} of their scale, more than "
            f"{limit:g}",
            "this is a bug in fxprune; please report it with the module",
        )
    return {"loaded_by": "torch.export.load", "worst_difference": worst, "tolerance": limit}


def _read_again(product: SavableModule, folder: Path) -> bool | str:
    """Compare what :func:`load_program` reads with the module; why it needs ``allow_pickle``, if it does.

    Raises:
        VerificationError: the outputs differ.
    """
    try:
        module = load_program(folder)
    except RequestError as error:
        return error.message.removeprefix(f"{folder / PROGRAM} ")
    with torch.no_grad():
        found, expected = (pytree.tree_leaves(m(*product.args, **product.kwargs)) for m in (module, product.module))
    for got, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, torch.Tensor) and not relative_difference(got, wanted) <= same_program(wanted.dtype):
            raise VerificationError(
                "the outputs of the program that was read again and of the module differ",
                "this is a bug in fxprune; please report it with the module",
            )
    return True


def load_program(folder: Path, *, allow_pickle: bool = False) -> nn.Module:
    """The exported program in an artifact, as a module.

    Args:
        folder: the artifact.
        allow_pickle: whether ``torch.export.load`` may read it, which runs what it holds.

    Raises:
        RequestError: it is damaged, or needs ``allow_pickle``.
    """
    if not allow_pickle:
        return read_program(folder / PROGRAM)
    try:
        with quiet():
            program = torch.export.load(folder / PROGRAM)
    except Exception as error:  # reading a damaged archive may raise any exception
        raise RequestError(f"{folder / PROGRAM} is damaged: {error}", "write the artifact again") from error
    module: nn.Module = program.module()
    return module


def load_into(folder: Path, record: Mapping[str, Any], into: nn.Module) -> nn.Module:
    """``into``, a new module with the original widths, with the tensors and changed attributes of an artifact.

    Args:
        folder: the artifact.
        record: its ``fxprune.json``.
        into: gets smaller.

    Raises:
        RequestError: it does not fit the artifact.
    """
    if record.get("form") == "graph":
        raise RequestError(
            f"into= cannot be used: {folder} holds a rewritten graph, because {record.get('rebuilt_because')}",
            "leave into= out",
        )
    held = _weights(folder)
    tensors = tensors_by_name(into)
    slices = read_plan(folder)
    for (name, dim), kept in slices.items():
        if name not in tensors or dim >= tensors[name].dim() or kept[-1] >= tensors[name].shape[dim]:
            raise RequestError(
                f"{type(into).__name__} does not fit the plan of {folder}: tensor '{name}' is missing or too small",
                "give a new module with the class and the widths of the original",
            )
    slice_tensors(into, Plan(slices=slices))
    _repair(into, Repairs.from_json(record.get("repairs") or {}), folder)
    try:
        missing, unexpected = into.load_state_dict(held, strict=False)
    except RuntimeError as error:
        raise RequestError(
            f"{type(into).__name__} does not fit {folder}: {error}",
            "give a new module with the class and the widths of the original",
        ) from None
    shared = _shared_names(into)
    missing = [name for name in missing if not shared.get(name, set()) & held.keys()]
    if missing or unexpected:
        what = f"{', '.join([*missing, *unexpected][:3])}"
        raise RequestError(
            f"{type(into).__name__} does not fit {folder}: tensors missing or unexpected: {what}",
            "give a new module with the class and the widths of the original",
        )
    return into


def _repair(into: nn.Module, repairs: Repairs, folder: Path) -> None:
    modules = dict(into.named_modules())
    for path, changes in repairs.attributes.items():
        for attribute, change in changes.items():
            if path not in modules or not repairs_integers(modules[path], attribute, change):
                raise RequestError(
                    f"{type(into).__name__} does not fit {folder}, which makes {attribute!r} of {path!r} {change[1]}",
                    "give a new module with the class and the widths of the original",
                )
            repair(modules[path], attribute, change[1])


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / MODULE_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{folder / MODULE_WEIGHTS} is damaged: {error}", "write the artifact again") from error


def _shared_names(module: nn.Module) -> dict[str, set[str]]:
    """Each name of a tensor -> all names of the same tensor."""
    names: dict[int, set[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), set()).add(name)
    return {name: group for group in names.values() for name in group}
