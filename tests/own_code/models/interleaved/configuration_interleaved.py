"""Configuration of Interleaved, a decoder whose heads stand in groups."""

from transformers import PretrainedConfig


class InterleavedConfig(PretrainedConfig):
    model_type = "interleaved"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_layers": "num_hidden_layers"}

    def __init__(
        self,
        vocab_size=26,
        hidden_size=32,
        ffn_hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=8,
        multi_query_group_num=2,
        kv_channels=None,
        max_position_embeddings=64,
        initializer_range=0.2,
        layer_norm_epsilon=1e-5,
        add_qkv_bias=True,
        use_cache=True,
        tie_word_embeddings=False,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.ffn_hidden_size = ffn_hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.multi_query_group_num = multi_query_group_num
        self.kv_channels = kv_channels if kv_channels is not None else hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_epsilon = layer_norm_epsilon
        self.add_qkv_bias = add_qkv_bias
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
