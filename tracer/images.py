"""Where the images of a text are: tokens of a model of images and text that wait for the features of an image.

``calls.json`` names the configuration fields that hold such tokens and the inputs that mark them; how many an image
needs is counted, by running what makes its features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..ir.errors import RequestError, class_and_first_line
from ..runtime.streaming.left_as_found import left_as_found
from .calls import IDS, calls
from .known_values import KnownValues

NamedInputs = dict[str, torch.Tensor]
OF_TEXT = frozenset({IDS, "attention_mask", "position_ids", "decoder_input_ids", "decoder_attention_mask", "use_cache"})
FIRST_TOKEN = 3
"""In most vocabularies, smaller ids are special tokens, such as padding."""


def writes_about_images(class_name: str) -> bool:
    """Whether a class of transformers makes text from images and text."""
    return class_name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()


def all_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and its nested configurations."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from all_configs(value)


def has_images(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether a call gives images, or what a model takes in their place, to one that makes text from them."""
    return writes_about_images(type(model).__name__) and not inputs.keys() <= OF_TEXT


def image_token(config: PreTrainedConfig) -> int | None:
    """The token that waits for a feature of an image; None for a model that reads images in another way."""
    return _token(config, calls()["images"]["tokens"])


def random_tokens(config: PreTrainedConfig, shape: Iterable[int]) -> torch.Tensor | None:
    """Token ids without a meaning of their own, the same in every call; None for a model without a vocabulary."""
    sizes = [getattr(part, "vocab_size", None) for part in all_configs(config)]
    size = min((size for size in sizes if isinstance(size, int) and size > FIRST_TOKEN), default=0)
    if not size:
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randint(FIRST_TOKEN, size, tuple(shape), generator=generator)


def with_images(model: Any, inputs: NamedInputs, *, longer: bool) -> NamedInputs:
    """The inputs of a call, with tokens in the text where its images belong.

    Args:
        model: on any device.
        inputs: token ids ``[samples, length]`` and images.
        longer: whether the text gets longer by the tokens of the images; if not, they take the place of others.

    Raises:
        RequestError: the text is too short, or the images are none that the model can read.
    """
    token, fixed = image_token(model.config), _token(model.config, calls()["images"]["counts"])
    if (token is None and fixed is None) or IDS not in inputs or not has_images(model, inputs):
        return inputs
    samples = inputs[IDS].shape[0]
    count = samples * fixed if fixed is not None else _features(model, inputs)
    token = FIRST_TOKEN if token is None else token
    ids = _without(inputs[IDS], _special(model.config), token)
    if count % samples:
        raise RequestError(
            f"{count} features of images cannot be shared among {samples} texts", "give as many images as texts"
        )
    known = calls()["images"]
    ends = [_token(model.config, known[end], below=_vocabulary(model.config)) for end in ("before", "after")]
    block = [*ends[:1], *[token] * (count // samples), *ends[1:]]
    row = torch.tensor([one for one in block if one is not None])
    if longer:
        ids = torch.cat((ids[:, :1], row.expand(samples, -1), ids[:, 1:]), 1)
    elif ids.shape[1] < row.numel() + 1:
        raise RequestError(
            f"a text of {ids.shape[1]} tokens has no room for an image, which takes {row.numel()}",
            f"give {IDS} of at least {row.numel() + 2} tokens, or a file with the inputs",
        )
    else:
        ids[:, 1 : 1 + row.numel()] = row
    return {**inputs, IDS: ids, **_marks(model, ids == token)}


def _marks(model: Any, images: torch.Tensor) -> NamedInputs:
    """Inputs that tell the tokens of images from those of text, and which tokens there are."""
    accepted = inspect.signature(model.forward).parameters
    made = {name: images.long() for name in calls()["images"]["marks"] if name in accepted}
    masks = {name: images for name in calls()["images"]["masks"] if name in accepted}
    return {**made, **masks, "attention_mask": torch.ones_like(images, dtype=torch.long)}


def _features(model: Any, inputs: NamedInputs) -> int:
    """The number of features that the images of a call have together, as the model itself makes them."""
    maker = _maker(model)
    if maker is None:
        return len(inputs[IDS])
    taken = inspect.signature(maker).parameters
    device = next(model.parameters()).device
    mode = KnownValues()
    try:
        with left_as_found(model, values=device.type != "meta"), torch.no_grad(), mode:
            given = {name: tensor for name, tensor in inputs.items() if name in taken and name != IDS}
            found = maker(**{name: mode.constant(tensor, device) for name, tensor in given.items()})
    except Exception as error:  # whatever a model's own code raises
        raise RequestError(
            f"{type(model).__name__} cannot read the example image: {class_and_first_line(error)}",
            "give the inputs as its processor makes them: --example FILE.safetensors",
        ) from error
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(_pooled(found)) if isinstance(leaf, torch.Tensor)]
    return sum(leaf.numel() // leaf.shape[-1] for leaf in leaves)


def _pooled(output: Any) -> Any:
    """Of what a method returns, the features that take the places of tokens."""
    if not isinstance(output, Mapping):
        return output
    named = (output.get(name) for name in calls()["images"]["pooled"])
    found = next((value for value in named if value is not None), None)
    if isinstance(found, list | tuple) and found and isinstance(found[0], tuple):  # (layer, features) pairs
        return found[0]
    return found


def _maker(model: Any) -> Callable[..., Any] | None:
    """What makes the features of an image: a method of the model inside, if there is one, or of the model."""
    held = (model.model, model) if hasattr(model, "model") else (model,)
    found = (getattr(part, name, None) for name in calls()["images"]["features"] for part in held)
    return next((maker for maker in found if maker is not None), None)


def _token(config: PreTrainedConfig, fields: Iterable[str], below: int | None = None) -> int | None:
    for part in all_configs(config):
        for field in fields:
            value = getattr(part, field, None)
            if isinstance(value, int) and (below is None or value < below):
                return value
    return None


def _vocabulary(config: PreTrainedConfig) -> int:
    size: int = getattr(config.get_text_config(), "vocab_size", 0) or 0
    return size


def _special(config: PreTrainedConfig) -> set[int]:
    """All tokens with a meaning of their own that a configuration names."""
    return {
        value
        for part in all_configs(config)
        for name, value in vars(part).items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }


def _without(ids: torch.Tensor, special: set[int], token: int) -> torch.Tensor:
    """Token ids with others in the place of special ones."""
    plain = next(one for one in range(FIRST_TOKEN, FIRST_TOKEN + len(special) + 2) if one not in special | {token})
    banned = torch.tensor(sorted(special | {token}))
    return torch.where(torch.isin(ids, banned), plain, ids)
