"""The adapters of lora: which projections get one, their training with PEFT, and how they are merged."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ...ir.errors import FxpruneError
from ...runtime.model.embeddings import input_embeddings
from ...runtime.model.held_values import Released, hold_again, release_values
from ...runtime.model.keywords import takes
from ...runtime.model.kinds import is_conv1d, is_pretrained
from ...runtime.tolerances import MERGED_ROUNDINGS, roundings
from ..model.answers import answer_of
from ..model.forward import logits_of
from ..model.inputs import called_with
from .answer_loss import AnswerLoss
from .kept_training import KeptTraining
from .lora import Lora
from .teacher import Teacher
from .training import Lessons, Recipe, reported, require_finite

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


@dataclass(frozen=True)
class Adapter:
    """A trained adapter in PEFT's format. It belongs to the pruned model *before* the merge.

    Attributes:
        config: content of PEFT's adapter_config.json.
        tensors: content of PEFT's adapter_model.safetensors.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def train_adapters(
    step: Lora,
    model: nn.Module,
    lessons: Lessons,
    recipe: Recipe,
    teacher: Teacher | AnswerLoss | None,
    *,
    kept: KeptTraining | None,
) -> dict[str, Any]:
    """Train adapters and merge them, as :meth:`~.lora.Lora.recover` says."""
    from transformers import set_seed

    from .trainer import train

    targets = projection_modules(model)
    set_seed(step.seed)
    config, values = _config(step, model, targets, text=lessons.text), release_values(model)
    adapted = _adapt(model, config)
    hold_again(model, values)  # around the adapters, whose matrices are as narrow as the weights
    try:
        training = train(adapted, lessons, recipe, teacher, kept)
        require_finite(adapted, "nothing was merged")
    except BaseException:
        adapted.unload()
        hold_again(model, values)
        raise
    adapter = _adapter(adapted) if step.keep_adapter else None
    difference = _merge(adapted, lessons, values)
    report = reported(training, lessons) | {"projections": targets, "merge_difference": difference}
    return report | ({"adapter": adapter} if adapter else {})


def _config(step: Lora, model: nn.Module, targets: list[str], *, text: bool = True) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        # The model of PEFT for this task calls the model with all keywords that those of transformers have.
        task_type="CAUSAL_LM" if text and takes(model, "inputs_embeds") else None,
        r=step.r,
        lora_alpha=step.alpha,
        lora_dropout=step.dropout,
        bias="none",
        target_modules=_targets(model, targets),
        # PEFT corrects this for each module by its type; with the right value it does not warn.
        fan_in_fan_out=is_conv1d(model.get_submodule(targets[0])),
    )


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def projection_modules(model: torch.nn.Module) -> list[str]:
    """Names of the modules that lora adapts: every linear projection with its own matrix; of a model without one, every
    convolution in one group.

    Input and output embeddings are left out. So are matrices that several modules share: an adapter merged into one
    module would change the others too.
    """
    modules = dict(model.named_modules())
    holders = Counter(id(module.weight) for module in modules.values() if hasattr(module, "weight"))
    embeddings = [input_embeddings(model), model.get_output_embeddings()] if is_pretrained(model) else []
    linear = [
        name
        for name, module in modules.items()
        if (isinstance(module, torch.nn.Linear) or is_conv1d(module))
        and module.weight.ndim == 2
        and holders[id(module.weight)] == 1
        and not any(module is embedding for embedding in embeddings)
    ]
    return linear or [
        name
        for name, module in modules.items()
        if isinstance(module, CONVOLUTIONS)
        and module.groups == 1
        and holders[id(module.weight)] == 1
        and not is_parametrized(module)
    ]


def _adapt(model: nn.Module, config: LoraConfig) -> PeftModel:
    from peft import PeftModel, get_peft_model

    with warnings.catch_warnings():
        # For a model with Linear and Conv1D projections, PEFT sets fan_in_fan_out by the type and warns each time.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # PEFT 0.21 uses the old name of a gradient checkpointing property of transformers 5.23.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise FxpruneError(f"PEFT cannot adapt this {type(model).__name__}: {error}", "leave lora out") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _targets(model: nn.Module, names: list[str]) -> list[str] | str:
    """The projections for PEFT: a list of names, which PEFT matches as suffixes, or a regular expression if a suffix
    would match other modules too."""
    wanted, suffixes = set(names), tuple(f".{name}" for name in names)
    if any(name.endswith(suffixes) for name, _ in model.named_modules() if name not in wanted):
        return "|".join(map(re.escape, names))
    return names


def _adapter(adapted: PeftModel) -> Adapter:
    from peft import get_peft_model_state_dict

    config = adapted.peft_config["default"].to_dict()
    targets = config["target_modules"]
    config |= {"inference_mode": True, "target_modules": targets if isinstance(targets, str) else sorted(targets)}
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return Adapter(config, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})


def _merge(adapted: PeftModel, lessons: Lessons, values: Released) -> float:
    """Merge the adapters into the weights; returns the largest change of the outputs for the first example.

    Every projection is compared on the inputs that it had there. The outputs of the whole model would not do: some
    models enlarge the rounding of one weight a thousandfold on the way.

    Raises:
        FxpruneError: a merged projection gives something else than its adapter gave.
    """
    adapted.eval()
    plain = adapted.get_base_model()
    first = lessons.examples[0]
    probe = torch.tensor([first["input_ids"]]) if lessons.text else lessons.join([first])

    def outputs() -> torch.Tensor:
        if isinstance(probe, torch.Tensor):
            return logits_of(plain, probe)
        return torch.cat([part.rows.flatten() for part in answer_of(called_with(probe)(plain), probe)])

    with torch.no_grad():
        with _calls_of_adapters(plain) as calls:
            before = outputs()
        adapted.merge_and_unload()
        for name, (given, wanted) in calls.items():
            _require_equal(name, plain.get_submodule(name)(given), wanted)
        hold_again(plain, values)
        return float((before - outputs()).abs().max())


@contextmanager
def _calls_of_adapters(plain: nn.Module) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Inside, the first input and output of every projection with an adapter are recorded by its name."""
    from peft.tuners.lora import LoraLayer

    calls: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = []
    for name, module in plain.named_modules():
        if isinstance(module, LoraLayer):

            def record(_: nn.Module, given: Any, found: torch.Tensor, name: str = name) -> None:
                calls.setdefault(name, (given[0], found))

            hooks.append(module.register_forward_hook(record, prepend=True))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _require_equal(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    difference, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    allowed = roundings(MERGED_ROUNDINGS, wanted.dtype) * largest
    if not difference <= allowed:
        raise FxpruneError(
            f"the merged {name} differs from the trained one by {difference:.3g} in its outputs (allowed "
            f"{allowed:.3g})",
            "this is a bug in fxprune or PEFT; please report it with the model's config",
        )
