"""Planar: [length, batch, width] throughout; half of each head turns with the place in a block, half with the block;
gate and up are chunks of one product. It keeps no cache, and lacks the mixin that generates."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from .configuration_planar import PlanarConfig


@dataclass
class PlanarOutput(ModelOutput):
    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class PlanarRotary(nn.Module):
    def __init__(self, dim, base=10000):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim)))

    def forward(self, positions):
        freqs = positions.float()[..., None] * self.inv_freq
        emb = torch.cat((freqs, freqs), dim=-1)[:, :, None, :]  # [s, b, 1, d]
        return emb.cos(), emb.sin()


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.hidden_size_per_attention_head = config.hidden_size // config.num_attention_heads
        self.inner_hidden_size = config.num_attention_heads * self.hidden_size_per_attention_head
        self.rotary_emb = PlanarRotary(self.hidden_size_per_attention_head // 2)
        self.query_key_value = nn.Linear(config.hidden_size, 3 * self.inner_hidden_size)
        self.dense = nn.Linear(self.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states, position_ids, block_position_ids, mask):
        mixed = self.query_key_value(hidden_states)
        shape = mixed.size()[:-1] + (self.num_attention_heads, 3 * self.hidden_size_per_attention_head)
        query, key, value = mixed.view(*shape).chunk(3, dim=-1)  # each [s, b, h, d]
        turned = []
        for part in (query, key):
            first, second = part.chunk(2, dim=-1)
            cos, sin = self.rotary_emb(position_ids)
            block_cos, block_sin = self.rotary_emb(block_position_ids)
            first = first * cos + rotate_half(first) * sin
            second = second * block_cos + rotate_half(second) * block_sin
            turned.append(torch.cat((first, second), dim=-1))
        query, key = turned
        s, b, h, d = query.shape
        query = query.reshape(s, b * h, d).transpose(0, 1)
        key = key.reshape(s, b * h, d).permute(1, 2, 0)
        scores = torch.bmm(query, key) / math.sqrt(self.hidden_size_per_attention_head)
        scores = scores.view(b, h, s, s).masked_fill(mask, -10000.0)
        probs = scores.softmax(dim=-1).view(b * h, s, s)
        context = torch.bmm(probs, value.reshape(s, b * h, d).transpose(0, 1))
        context = context.view(b, h, s, d).permute(2, 0, 1, 3).contiguous()
        return self.dense(context.view(s, b, self.inner_hidden_size))


class GLU(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.ffn_hidden_size * 2, bias=False)

        def swiglu(x):
            x = torch.chunk(x, 2, dim=-1)
            return F.silu(x[0]) * x[1]

        self.activation_func = swiglu
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states):
        return self.dense_4h_to_h(self.activation_func(self.dense_h_to_4h(hidden_states)))


class PlanarBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GLU(config)

    def forward(self, hidden_states, position_ids, block_position_ids, mask):
        attended = self.attention(self.input_layernorm(hidden_states), position_ids, block_position_ids, mask)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class PlanarPreTrainedModel(PreTrainedModel):
    config_class = PlanarConfig
    base_model_prefix = "transformer"

    def _init_weights(self, module):
        return


class PlanarTransformer(PlanarPreTrainedModel):
    def __init__(self, config, empty_init=True):
        super().__init__(config)
        self.block_length = config.block_length
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([PlanarBlock(config) for _ in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        batch, length = input_ids.shape
        steps = torch.arange(length, device=input_ids.device)
        mask = (steps[None, :] > steps[:, None])[None, None]
        if attention_mask is not None:
            mask = mask | (attention_mask[:, None, None, :] < 1)
        places = steps.unsqueeze(1).expand(length, batch)
        blocks = torch.div(places, self.block_length, rounding_mode="floor")
        hidden_states = self.word_embeddings(input_ids).transpose(0, 1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, places - blocks * self.block_length, blocks, mask)
        return self.final_layernorm(hidden_states)


class PlanarForConditionalGeneration(PlanarPreTrainedModel):
    def __init__(self, config, empty_init=True):
        super().__init__(config)
        self.transformer = PlanarTransformer(config, empty_init=empty_init)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, labels=None, return_dict=None):
        hidden_states = self.transformer(input_ids, attention_mask)
        logits = self.output_layer(hidden_states).transpose(0, 1).contiguous()
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return PlanarOutput(loss=loss, logits=logits)
