"""Configuration of Planar, a decoder whose positions have two dimensions."""

from transformers import PretrainedConfig


class PlanarConfig(PretrainedConfig):
    model_type = "planar"

    def __init__(
        self,
        padded_vocab_size=26,
        hidden_size=32,
        ffn_hidden_size=36,
        num_layers=2,
        num_attention_heads=4,
        seq_length=64,
        block_length=5,
        layernorm_epsilon=1e-5,
        **kwargs,
    ):
        self.vocab_size = padded_vocab_size
        self.padded_vocab_size = padded_vocab_size
        self.hidden_size = hidden_size
        self.ffn_hidden_size = ffn_hidden_size
        self.num_layers = num_layers
        self.num_hidden_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.seq_length = seq_length
        self.block_length = block_length
        self.layernorm_epsilon = layernorm_epsilon
        kwargs.pop("vocab_size", None)
        kwargs.pop("num_hidden_layers", None)
        super().__init__(**kwargs)
