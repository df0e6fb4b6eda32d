"""One model of the table: pruned, compared with the original, trained a step, timed. Prints JSON.

python -m fxprune.benchmarks.vision_zoo.row timm resnet18 [--only times|checks]
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fxprune
from fxprune.benchmarks.vision_zoo.masked import reference, zeroed
from fxprune.benchmarks.vision_zoo.torchvision_stub import stand_in
from fxprune.ir.errors import RequestError
from fxprune.runtime.tolerances import relative_difference
from fxprune.tracer.module import parse_example

MODELS: Mapping[str, Any] = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
RATIO = 0.5
WAYS = {"with channels": True, "without channels": False}
LIMIT = 1e-10
"""Relative, float64: as in the tests of the package."""
PEER_LIMIT = 15
"""CPU seconds that Torch-Pruning may take; on some models it takes minutes."""
FLOAT32_LIMIT = 1e-5
"""For models whose code computes in float32 whatever its weights are."""


def build(suite: str, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model with random weights in evaluation mode, and two samples by the names of the forward's arguments."""
    known = MODELS[suite][name]
    torch.manual_seed(0)
    if suite == "timm":
        stand_in()
        model = importlib.import_module("timm").create_model(name, **known.get("options", {}))
        inputs: dict[str, Any] = {"x": torch.randn(2, 3, known["size"], known["size"])}
    else:
        model = getattr(importlib.import_module("diffusers"), name)(**known.get("options", {}))
        inputs = {**parse_example(known["inputs"]), **known.get("fixed", {})}  # type: ignore[dict-item]
    return roughened(model), inputs


def roughened(model: nn.Module) -> nn.Module:
    """In evaluation mode, with nothing left at zero or one: fresh biases, norms and scales would hide errors."""
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point():
                scale = 0.1 if tensor.dim() < 2 else 0.1 * float(tensor.std(correction=0)) + 1e-3
                tensor.add_(scale * torch.randn_like(tensor))
        for path, buffer in model.named_buffers():
            if path.endswith(("running_mean", "running_var")):
                buffer.add_(0.1 * torch.rand_like(buffer))
    return model.eval()


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    started = time.process_time()
    found = call()
    return time.process_time() - started, found


def warm_up() -> None:
    """What the first call of everything costs is not measured."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.export.export(net, (x,), strict=False)
    fxprune.prune_module(net, x, "magnitude", ratio=RATIO)
    peer(net, {"input": x})


def times(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds in float32: of a forward, of torch.export, of prune_module, of Torch-Pruning."""
    warm_up()
    with torch.no_grad():
        model(**inputs)
        found = {"forward": seconds(lambda: model(**inputs))[0]}
        found["export"] = seconds(lambda: torch.export.export(model, (), inputs, strict=False))[0]
    found["fxprune"], pruned = seconds(lambda: fxprune.prune_module(model, inputs, "magnitude", ratio=RATIO))
    return {"seconds": {**found, **peer(model, inputs)}, "kept": pruned.parameters[1] / pruned.parameters[0]}


def peer(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of Torch-Pruning at the same ratio, and its error if it has one or if its result does not run."""
    peers = importlib.import_module("torch_pruning")
    copied = copy.deepcopy(model)
    with torch.no_grad():
        shapes = [leaf.shape for leaf in _tensors(copied(**inputs))]

    def prune() -> None:
        last = [layer for layer in copied.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1:]
        importance = peers.importance.MagnitudeImportance(p=2)
        pruner = peers.pruner.MagnitudePruner(
            copied, inputs, importance=importance, pruning_ratio=RATIO, ignored_layers=last,
            forward_fn=lambda net, given: net(**given),
            output_transform=lambda out: sum(leaf.sum() for leaf in _tensors(out)),
        )  # fmt: skip
        pruner.step()

    def too_long(*_: Any) -> None:
        raise TimeoutError(f"more than {PEER_LIMIT} seconds")

    try:
        signal.signal(signal.SIGPROF, too_long)
        signal.setitimer(signal.ITIMER_PROF, PEER_LIMIT)
        try:
            cost, _ = seconds(prune)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        with torch.no_grad():
            now = [leaf.shape for leaf in _tensors(copied(**inputs))]
        return {"peer": cost} if now == shapes else {"peer": cost, "peer error": "other output shapes"}
    except Exception as error:
        return {"peer error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def checks(model: nn.Module, inputs: dict[str, Any], channels: bool) -> dict[str, Any]:
    """Pruned in float64, and compared with the masked original on two samples and on three; then a training step."""
    dense = model.double()
    two = {key: _double(value) for key, value in inputs.items()}
    torch.manual_seed(1)
    three = {key: _more(value) for key, value in two.items()}
    pruned = fxprune.prune_module(dense, two, "random", ratio=RATIO, channels=channels)
    masked = zeroed(dense, pruned.plan)
    found: dict[str, Any] = {
        "kept": pruned.parameters[1] / pruned.parameters[0], "groups": len(pruned.groups),
        "in place": pruned.in_place, "because": pruned.rebuilt_because, "fixed batch": pruned.fixed_batch,
        "float32": rounds(dense, two),
    }  # fmt: skip
    for name, given in {"difference": two, "other batch": three}.items():
        if name == "other batch" and pruned.fixed_batch and not pruned.in_place:
            continue  # a graph that says so
        expected, found["norms"] = reference(dense, masked, lambda net, given=given: net(**given))  # type: ignore[misc]
        with torch.no_grad():
            found[name] = _apart(pruned.module(**given), expected)
    found["step"] = step(pruned.module, dense, three if "other batch" in found else two)
    return found


def rounds(dense: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether a model with float64 weights and inputs makes float32 numbers of some of them."""

    class Casts(TorchDispatchMode):
        found = False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
                self.found |= made.dtype == torch.float32
            return made

    with torch.no_grad(), Casts() as casts:
        dense(**inputs)
    return casts.found


def step(module: nn.Module, dense: nn.Module, inputs: dict[str, Any]) -> str:
    """An empty text if a training step gives finite gradients to all parameters that have one in the original."""
    names = []
    for net in (dense, module):
        net.train()
        sum(leaf.square().mean() for leaf in _tensors(net(**inputs)) if leaf.is_floating_point()).backward()  # type: ignore[union-attr]
        names.append({n for n, p in net.named_parameters() if p.grad is not None})
        if net is module and not all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None):
            return "a gradient is not finite"
        net.eval()
    missing = sorted(names[0] - names[1])
    return f"no gradient: {', '.join(missing[:3])}" if missing else ""


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _more(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.dim() or len(value) != 2:  # two samples; some inputs are for all
        return value
    more = torch.cat([value, value[:1]])
    return torch.randn_like(more) if more.is_floating_point() else more


def _apart(got: Any, expected: Any) -> float:
    return max(relative_difference(a, b) for a, b in zip(_tensors(got), _tensors(expected), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suite", choices=MODELS)
    parser.add_argument("name")
    parser.add_argument("--only", choices=("times", "checks"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, inputs = build(options.suite, options.name)
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    if options.only != "checks":
        row |= times(model, inputs)
    torch.set_default_dtype(torch.float64)  # what a forward makes itself is float64 too
    for way, channels in WAYS.items() if options.only != "times" else ():
        try:
            row[way] = checks(model, inputs, channels)
        except RequestError as nothing:
            row[way] = {"nothing": nothing.message[:300]}
        except Exception as error:
            row[way] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    json.dump(row, sys.stdout)


if __name__ == "__main__":
    main()
