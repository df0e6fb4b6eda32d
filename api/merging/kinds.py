"""Which adapters can be merged into weights: those that add to weights, or scale them, alike for every text."""

from __future__ import annotations

from dataclasses import fields

from ...ir.errors import RequestError
from ...runtime.adapter_files import AdapterFiles
from .layers import MERGE_IT

MERGED_KINDS = ("LORA", "IA3", "LOHA", "LOKR")
"""As PEFT writes them. Others have no weights to be merged into, as prompts, or are not tested here."""

_REFUSED = {
    "alora_invocation_tokens": "its effect begins at certain tokens of the text",
    "arrow_config": "it chooses among adapters by the text",
    "kasa_config": "it takes directions out of the base",
    "layer_replication": "it repeats layers of the model",
    "megatron_config": "PEFT imports a module that it names",
    "monteclora_config": "it draws its values at random",
    "use_bdlora": "it is one for several processes",
    "use_qalora": "PEFT cannot merge it",
    "velora_config": "PEFT cannot merge it",
}
"""Entry of ``adapter_config.json`` -> why an adapter with it is not merged."""

_KEEPS_BASE = (None, True, False, "eva", "gaussian", "orthogonal")
"""Values of ``init_lora_weights`` that leave the weights of the base as they are when PEFT loads the adapter."""


def check_kind(adapter: AdapterFiles) -> None:
    """Refuse an adapter that cannot be merged.

    Raises:
        RequestError: with its kind, and what of it stands in the way.
    """
    kind = adapter.config.get("peft_type")
    if kind not in MERGED_KINDS:
        raise RequestError(
            f"{adapter.directory} holds {adapter}: --merge-adapter cannot merge this kind",
            f"it merges {', '.join(MERGED_KINDS)}; {MERGE_IT}",
        )
    for name, why in _REFUSED.items():
        if adapter.config.get(name):
            raise RequestError(f"{adapter.directory} holds {adapter} with {name}: {why}", MERGE_IT)
    _check_known(adapter, kind)
    start = adapter.config.get("init_lora_weights")
    if start not in _KEEPS_BASE:
        raise RequestError(
            f"{adapter.directory} holds {adapter} with init_lora_weights {ascii(start)[:60]}, which changes the base",
            "convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def _check_known(adapter: AdapterFiles, kind: str) -> None:
    """Refuse what a later PEFT has switched on, and this one would leave out with a warning."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)])} | {"peft_version"}
    odd = next((name for name, value in adapter.config.items() if value and name not in known), None)
    if odd is not None:
        raise RequestError(
            f"{adapter.directory} holds {adapter} with {ascii(odd)[:60]}, which this version of PEFT does not know",
            MERGE_IT,
        )
