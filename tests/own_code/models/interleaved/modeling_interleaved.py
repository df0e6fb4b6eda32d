"""Interleaved: every group has its queries, its key and its value side by side; gate and up share a matrix."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_interleaved import InterleavedConfig


def rotate_every_two(x, position_ids, base=10000):
    """x: [b, h, s, d]; neighbours turn together."""
    d = x.shape[-1]
    inv_freq = 1.0 / (base ** (torch.arange(0, d, 2, device=x.device).float() / d))
    angles = position_ids[:, None, :, None].float() * inv_freq
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


class GroupedAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.multi_query_group_num
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.head_dim = config.kv_channels
        self.wqkv = nn.Linear(
            config.hidden_size,
            (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim,
            bias=config.add_qkv_bias,
        )
        self.wo = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, attention_mask, position_ids, past_key_values=None):
        batch, length, _ = hidden_states.shape
        qkv = self.wqkv(hidden_states)
        qkv = qkv.view(batch, length, self.num_key_value_heads, 2 + self.num_key_value_groups, self.head_dim)
        query = qkv[..., : self.num_key_value_groups, :]
        query = query.reshape(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        key = qkv[..., -2, :].transpose(1, 2)
        value = qkv[..., -1, :].transpose(1, 2)
        query, key = rotate_every_two(query, position_ids), rotate_every_two(key, position_ids)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        key = key.repeat_interleave(self.num_key_value_groups, dim=1)
        value = value.repeat_interleave(self.num_key_value_groups, dim=1)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        context = context.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim)
        return self.wo(context)


class FusedMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ffn_hidden_size = config.ffn_hidden_size
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.down = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).split(self.ffn_hidden_size, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = GroupedAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = FusedMLP(config)

    def forward(self, hidden_states, attention_mask, position_ids, past_key_values=None):
        attended = self.attn(self.ln_1(hidden_states), attention_mask, position_ids, past_key_values)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class InterleavedPreTrainedModel(PreTrainedModel):
    config_class = InterleavedConfig
    base_model_prefix = "transformer"

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=self.config.initializer_range)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)


class InterleavedModel(InterleavedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList([Block(config, index) for index in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        use_cache = self.config.use_cache if use_cache is None else use_cache
        hidden_states = self.wte(input_ids)
        length = input_ids.shape[1]
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        steps = torch.arange(past + length, device=input_ids.device)
        if position_ids is None:
            position_ids = steps[past:].unsqueeze(0)
        mask = (steps[None, :] <= steps[past:, None])[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None, :].to(torch.bool)
        for block in self.h:
            hidden_states = block(hidden_states, mask, position_ids, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.ln_f(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class InterleavedForCausalLM(InterleavedPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.transformer = InterleavedModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer.wte

    def set_input_embeddings(self, value):
        self.transformer.wte = value

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, labels=None, use_cache=None,
        **kwargs,
    ):  # fmt: skip
        found = self.transformer(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        logits = self.lm_head(found.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=found.past_key_values)
