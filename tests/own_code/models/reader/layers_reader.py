"""The layers of Reader."""

import torch
from torch import nn


class ReaderAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.head_size = config.d_model // config.n_heads
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key = nn.Linear(config.d_model, config.d_model)
        self.value = nn.Linear(config.d_model, config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def _heads(self, x):
        return x.view(*x.shape[:-1], self.n_heads, self.head_size).permute(0, 2, 1, 3)

    def forward(self, hidden_states, mask=None):
        query, key, value = (self._heads(part(hidden_states)) for part in (self.query, self.key, self.value))
        scores = torch.einsum("bhid,bhjd->bhij", query, key) * self.head_size**-0.5
        if mask is not None:
            scores = scores + mask
        context = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), value).permute(0, 2, 1, 3)
        return self.out(context.flatten(2))


class ReaderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = ReaderAttention(config)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.ff = nn.Sequential(
            nn.Linear(config.d_model, config.d_ff), nn.GELU(), nn.Linear(config.d_ff, config.d_model)
        )
        self.norm2 = nn.LayerNorm(config.d_model)

    def forward(self, hidden_states, mask=None):
        hidden_states = self.norm1(hidden_states + self.attention(hidden_states, mask))
        return self.norm2(hidden_states + self.ff(hidden_states))
