"""Mixture: the first layer is dense; in the others a loop sends every token to its experts, and all to a shared one."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_mixture import MixtureConfig


class MixtureRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


class MixtureMLP(nn.Module):
    def __init__(self, config, intermediate_size=None):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.intermediate_size = config.intermediate_size if intermediate_size is None else intermediate_size
        self.gate_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=False)
        self.up_proj = nn.Linear(self.hidden_size, self.intermediate_size, bias=False)
        self.down_proj = nn.Linear(self.intermediate_size, self.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoEGate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, hidden_states):
        scores = F.linear(hidden_states, self.weight).softmax(dim=-1)
        topk_weight, topk_idx = torch.topk(scores, k=self.top_k, dim=-1, sorted=False)
        return topk_idx, topk_weight / (topk_weight.sum(dim=-1, keepdim=True) + 1e-20)


class MixtureMoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.moe_intermediate_size
        self.experts = nn.ModuleList([MixtureMLP(config, width) for _ in range(config.n_routed_experts)])
        self.gate = MoEGate(config)
        if config.n_shared_experts is not None:
            self.shared_experts = MixtureMLP(config, width * config.n_shared_experts)

    def forward(self, hidden_states):
        shape = hidden_states.shape
        tokens = hidden_states.view(-1, shape[-1])
        topk_idx, topk_weight = self.gate(tokens)
        routed = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            weight = (topk_weight * (topk_idx == number)).sum(dim=-1, keepdim=True)
            routed = routed + expert(tokens) * weight
        return routed.view(*shape) + self.shared_experts(hidden_states)


class MixtureAttention(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj = nn.Linear(config.hidden_size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)

    def _rotate(self, x, position_ids):
        inv_freq = 1.0 / (10000 ** (torch.arange(0, self.head_dim, 2, device=x.device).float() / self.head_dim))
        freqs = position_ids[:, None, :, None].float() * inv_freq
        emb = torch.cat((freqs, freqs), dim=-1)
        x1, x2 = x[..., : self.head_dim // 2], x[..., self.head_dim // 2 :]
        return x * emb.cos().to(x.dtype) + torch.cat((-x2, x1), dim=-1) * emb.sin().to(x.dtype)

    def forward(self, hidden_states, attention_mask, position_ids, past_key_values=None):
        b, s, _ = hidden_states.shape
        q = self.q_proj(hidden_states).view(b, s, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(hidden_states).view(b, s, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(hidden_states).view(b, s, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        q, k = self._rotate(q, position_ids), self._rotate(k, position_ids)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        groups = self.num_key_value_groups
        length = k.shape[2]
        k = k[:, :, None].expand(b, self.num_key_value_heads, groups, length, self.head_dim)
        v = v[:, :, None].expand(b, self.num_key_value_heads, groups, length, self.head_dim)
        k = k.reshape(b, self.num_key_value_heads * groups, length, self.head_dim)
        v = v.reshape(b, self.num_key_value_heads * groups, length, self.head_dim)
        weights = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.head_dim) + attention_mask
        attended = torch.matmul(weights.softmax(dim=-1), v).transpose(1, 2).contiguous()
        return self.o_proj(attended.reshape(b, s, self.num_heads * self.head_dim))


class MixtureDecoderLayer(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = MixtureAttention(config, layer_idx)
        dense = layer_idx < config.first_k_dense_replace
        self.mlp = MixtureMLP(config) if dense else MixtureMoE(config)
        self.input_layernorm = MixtureRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MixtureRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, attention_mask, position_ids, past_key_values=None):
        attended = self.self_attn(self.input_layernorm(hidden_states), attention_mask, position_ids, past_key_values)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class MixturePreTrainedModel(PreTrainedModel):
    config_class = MixtureConfig
    base_model_prefix = "model"
    _no_split_modules = ["MixtureDecoderLayer"]

    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding, MoEGate)):
            nn.init.normal_(module.weight, std=std)


class MixtureModel(MixturePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([MixtureDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = MixtureRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        hidden_states = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        steps = torch.arange(past + input_ids.shape[1], device=input_ids.device)
        if position_ids is None:
            position_ids = steps[past:].unsqueeze(0)
        lowest = torch.finfo(hidden_states.dtype).min
        hidden = (steps[None, :] > steps[past:, None])[None, None]
        if attention_mask is not None:
            hidden = hidden | (attention_mask[:, None, None, :] == 0)
        mask = torch.zeros_like(hidden, dtype=hidden_states.dtype).masked_fill(hidden, lowest)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, position_ids, past_key_values)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )


class MixtureForCausalLM(MixturePreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = MixtureModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, labels=None,
        use_cache=None, **kwargs,
    ):  # fmt: skip
        found = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        logits = self.lm_head(found.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=found.past_key_values)
