"""lora: recovery training with low-rank adapters, merged back so that the model stays plain."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from ..ir.errors import FxpruneError, RequestError
from .base import Pass, State, option
from .measure import logits_of
from .training import Example, Recipe, examples_of, preserved_randomness, train

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Adapter:
    """What was learned, apart from the model; belongs to the pruned model *before* it was merged in.

    Attributes:
        config: PEFT's adapter_config.json.
        tensors: PEFT's adapter_model.safetensors.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Lora(Pass):
    """Recovery training as LLM-Pruner does it (arXiv 2305.11627, section 3.3), with PEFT and the transformers Trainer.

    ``state.report["lora"]`` receives the loss of every step, steps, tokens, seconds, the projections adapted, and the
    worst logit difference between adapter and merged model; with ``keep_adapter`` an ``Adapter`` under ``adapter``.
    """

    name: ClassVar[str] = "lora"
    kind: ClassVar[str] = "recover"

    r: int = option(8, "rank of the adapters")
    alpha: int = option(16, "scale of the adapters; they are multiplied by alpha / r")
    dropout: float = option(0.05, "dropout in front of the adapters")
    epochs: int = option(2, "passes over the data, when steps is 0")
    lr: float = option(1e-4, "peak learning rate, falling linearly to 0")
    batch: int = option(64, "examples in an optimizer step")
    micro_batch: int = option(4, "examples in one forward pass on one device; the rest is gradient accumulation")
    length: int = option(256, "tokens in an example, at most")
    steps: int = option(0, "optimizer steps; 0 means by epochs")
    warmup: int = option(100, "steps of linear warm-up, at most a tenth of all")
    seed: int = option(42, "seed of the adapters, of dropout and of the order of the data")
    keep_adapter: bool = option(False, "keep the adapter beside the merged model")
    dtype: str = option(
        "float32",
        "arithmetic: float32 (half weights are widened for the time), or bfloat16 autocast",
        ("float32", "bfloat16"),
    )

    def check(self) -> None:
        for name, low in _AT_LEAST.items():
            if getattr(self, name) < low:
                raise RequestError(
                    f"lora: {name}={getattr(self, name)} is below {low}", f"give {name} of {low} or more"
                )
        if not 0 <= self.seed < 2**32:
            raise RequestError(f"lora: seed={self.seed} is outside [0, 2^32)", "give another seed")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"lora: dropout={self.dropout} is outside [0, 1)", "the paper uses 0.05")
        if not 0 < self.lr < float("inf"):
            raise RequestError(f"lora: lr={self.lr} is not a positive number", "the paper uses 1e-4")
        if self.dtype not in ("float32", "bfloat16"):
            raise RequestError(f"lora: dtype={self.dtype} is not known", "choose float32 or bfloat16")
        if self.batch % min(self.micro_batch, self.batch):
            raise RequestError(
                f"lora: batch={self.batch} is no multiple of micro_batch={self.micro_batch}",
                "change one of them so that a batch is a whole number of micro-batches",
            )

    def run(self, state: State) -> None:
        """Train and merge; ``state.model`` stays the same object with the same parameters, in eval mode.

        Raises:
            RequestError: no data, or too little of it; a model that is not a transformers causal language model, or
                has no projection to adapt.
            FxpruneError: a loss that is not finite, or a merged model that differs from the one that was trained. The
                model is then as it was before, except after the latter.
        """
        if state.data is None:
            raise RequestError("lora has no text to train on", "give one with `--data FILE`")
        model = state.model
        if not isinstance(model, PreTrainedModel):
            raise RequestError(f"lora cannot train a {type(model).__name__}", "give a transformers causal-LM model")
        targets = projection_modules(model)
        if not targets:
            raise RequestError(f"{type(model).__name__} has no projection that lora could adapt", "leave lora out")
        examples = examples_of(state.data, self.length)
        precision = _full_precision(model) if self.dtype == "float32" else nullcontext()
        with preserved_randomness(), precision, _restored(model):
            state.report[self.name] = self._recover(model, targets, examples)

    def _recover(self, model: PreTrainedModel, targets: list[str], examples: list[Example]) -> dict[str, Any]:
        set_seed(self.seed)
        adapted = _adapt(model, self._config(model, targets))
        try:
            training = train(adapted, examples, self._recipe())
            _require_finite(adapted)
        except BaseException:
            adapted.unload()
            raise
        adapter = _adapter(adapted) if self.keep_adapter else None
        difference = _merge(adapted, torch.tensor([examples[0]["input_ids"]]))
        report: dict[str, Any] = {
            "loss": training.losses,
            "steps": len(training.losses),
            "tokens": training.tokens,
            "seconds": training.seconds,
            "projections": targets,
            "merge_difference": difference,
        }
        return report | ({"adapter": adapter} if adapter else {})

    def _config(self, model: PreTrainedModel, targets: list[str]) -> LoraConfig:
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            bias="none",
            target_modules=_targets(model, targets),
            # PEFT corrects this for each module by its type; set right, it has nothing to warn of.
            fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
        )

    def _recipe(self) -> Recipe:
        return Recipe(
            epochs=self.epochs,
            steps=self.steps,
            lr=self.lr,
            warmup=self.warmup,
            batch=self.batch,
            micro_batch=self.micro_batch,
            bfloat16=self.dtype == "bfloat16",
            seed=self.seed,
        )


_AT_LEAST = {"r": 1, "alpha": 1, "epochs": 1, "batch": 1, "micro_batch": 1, "length": 2, "steps": 0, "warmup": 0}


def projection_modules(model: torch.nn.Module) -> list[str]:
    """Names of the modules that lora adapts: every linear projection with a matrix of its own.

    Input and output embeddings are left out, and so is a matrix that several modules share: merged into one of them, an
    adapter would change the others too.
    """
    modules = dict(model.named_modules())
    holders = Counter(id(module.weight) for module in modules.values() if hasattr(module, "weight"))
    embeddings = (
        [model.get_input_embeddings(), model.get_output_embeddings()] if isinstance(model, PreTrainedModel) else []
    )
    return [
        name
        for name, module in modules.items()
        if isinstance(module, (torch.nn.Linear, Conv1D))
        and module.weight.ndim == 2
        and holders[id(module.weight)] == 1
        and not any(module is embedding for embedding in embeddings)
    ]


def _adapt(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    with warnings.catch_warnings():
        # In a model with both kinds of projection PEFT sets fan_in_fan_out by the type of each, and says so each time.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # PEFT 0.21 asks transformers 5.23 about gradient checkpointing by the old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise FxpruneError(f"PEFT cannot adapt this {type(model).__name__}: {error}", "leave lora out") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def _targets(model: PreTrainedModel, names: list[str]) -> list[str] | str:
    """The projections as PEFT wants them named: a list, which it matches as suffixes, where that hits nothing else."""
    wanted, suffixes = set(names), tuple(f".{name}" for name in names)
    if any(name.endswith(suffixes) for name, _ in model.named_modules() if name not in wanted):
        return "|".join(map(re.escape, names))
    return names


def _require_finite(adapted: PeftModel) -> None:
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise FxpruneError(
                f"recovery training broke down: '{name}' is not finite after the last step",
                "lower lr or raise warmup; nothing was merged",
            )


def _adapter(adapted: PeftModel) -> Adapter:
    config = adapted.peft_config["default"].to_dict()
    targets = config["target_modules"]
    config |= {"inference_mode": True, "target_modules": targets if isinstance(targets, str) else sorted(targets)}
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return Adapter(config, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})


def _merge(adapted: PeftModel, probe: torch.Tensor) -> float:
    """Fold the adapters into the weights; the largest difference this makes to the logits of ``probe`` ``[1, n]``."""
    adapted.eval()
    plain = adapted.get_base_model()
    with torch.no_grad():
        before = logits_of(plain, probe)
        adapted.merge_and_unload()
        after = logits_of(plain, probe)
    difference = (before - after).abs().max().item()
    # A sum is rounded once per weight: some hundred units in the last place of the largest logit, not more.
    allowed = 1000 * torch.finfo(plain.dtype).eps * max(1.0, before.abs().max().item())
    if not difference <= allowed:
        raise FxpruneError(
            f"the merged model differs from the trained one by {difference:.3g} in its logits (allowed {allowed:.3g})",
            "this is a fault of fxprune or PEFT; please report it with the model's config",
        )
    return difference


@contextmanager
def _full_precision(model: PreTrainedModel) -> Iterator[None]:
    """Hold half-precision tensors in float32 for the time: in half precision small updates are lost."""
    half = [(tensor, tensor.dtype) for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALF]
    for tensor, _ in half:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in half:
            tensor.data = tensor.data.to(dtype)


@contextmanager
def _restored(model: PreTrainedModel) -> Iterator[None]:
    """Put back which parameters require a gradient, leave eval mode on, and take off what PEFT hung on the model."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        model.eval()
        vars(model).pop("peft_config", None)
