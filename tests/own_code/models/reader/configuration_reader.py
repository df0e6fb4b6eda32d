"""Configuration of Reader, an encoder."""

from transformers import PretrainedConfig


class ReaderConfig(PretrainedConfig):
    model_type = "reader"

    def __init__(
        self,
        vocab_size=26,
        d_model=32,
        d_ff=40,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
        num_labels=3,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.d_ff = d_ff
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.max_position_embeddings = max_position_embeddings
        super().__init__(num_labels=num_labels, **kwargs)
