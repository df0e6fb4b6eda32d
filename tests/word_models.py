"""Small tokenizers of every kind that tokens can be taken out of, trained on a few sentences."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "the quick brown fox jumps over the lazy dog, and the dog sleeps",
    "once upon a time there was a little girl who loved to play in the garden",
    "she sells sea shells on the sea shore; 123 of them, then 4567 more!",
    "été naïve façade über straße ñandú",
    "αβγ δεζ αβγδ ηθι",
    "быстрая лиса прыгает через собаку",
    "漢字 日本 語",
)
"""What they are trained on."""

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def byte_level() -> Tokenizer:
    """Byte-pair encoding over bytes, as GPT-2 has it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        made,
        trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False),
    )


def sentence_piece_pairs() -> Tokenizer:
    """Byte-pair encoding over characters, with bytes for those that have no token, as Llama 2 has it."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL, *BYTES]
    found = _trained(made, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    return _with_plain_bytes(found)


def unigram() -> Tokenizer:
    """The most likely pieces, as T5 has it."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _trained(
        made,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=[*SPECIAL], unk_token="<unk>", show_progress=False),
    )


def word_piece() -> Tokenizer:
    """The longest piece first, as BERT has it."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))  # type: ignore[call-arg]
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    return _trained(made, trainers.WordPieceTrainer(vocab_size=400, special_tokens=[*SPECIAL], show_progress=False))


def characters() -> Tokenizer:
    """Byte-pair encoding over characters, with a sign at the end of a word, as CLIP and the first GPT have it."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.BPEDecoder("</w>")
    return _trained(
        made,
        trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL], end_of_word_suffix="</w>", show_progress=False),
    )


KINDS: tuple[Callable[[], Tokenizer], ...] = (byte_level, sentence_piece_pairs, unigram, word_piece, characters)
"""One of each."""


@functools.cache
def trained(kind: Callable[[], Tokenizer]) -> Tokenizer:
    """One of the above, trained once."""
    return kind()


def for_transformers(kind: Callable[[], Tokenizer]) -> PreTrainedTokenizerFast:
    """The same as a tokenizer of transformers, with a token that the user added."""
    made = Tokenizer.from_str(trained(kind).to_str())
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair=None,
        special_tokens=[("<s>", made.token_to_id("<s>")), ("</s>", made.token_to_id("</s>"))],
    )
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def _trained(made: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    made.train_from_iterator([line for line in SENTENCES for _ in range(3)], trainer)
    return made


def _with_plain_bytes(made: Tokenizer) -> Tokenizer:
    """Tokens for bytes that text cannot write: the trainer takes them in as special tokens alone."""
    import json

    data = json.loads(made.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(data))
