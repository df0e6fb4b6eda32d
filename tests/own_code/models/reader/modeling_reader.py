"""Reader: an encoder with norms after its sub-blocks; it labels sequences."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from .configuration_reader import ReaderConfig
from .layers_reader import ReaderLayer


class ReaderPreTrainedModel(PreTrainedModel):
    config_class = ReaderConfig
    base_model_prefix = "reader"

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.2)


class ReaderModel(ReaderPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.norm = nn.LayerNorm(config.d_model)
        self.layers = nn.ModuleList([ReaderLayer(config) for _ in range(config.n_layers)])
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_states = self.norm(self.words(input_ids) + self.positions(places))
        mask = None
        if attention_mask is not None:
            mask = (1 - attention_mask[:, None, None, :].to(hidden_states.dtype)) * -10000.0
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return BaseModelOutput(last_hidden_state=hidden_states)


class ReaderForSequenceClassification(ReaderPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.reader = ReaderModel(config)
        self.pooler = nn.Linear(config.d_model, config.d_model)
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden_states = self.reader(input_ids, attention_mask).last_hidden_state
        logits = self.classifier(torch.tanh(self.pooler(hidden_states[:, 0])))
        loss = nn.functional.cross_entropy(logits, labels) if labels is not None else None
        return SequenceClassifierOutput(loss=loss, logits=logits)
