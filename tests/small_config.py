"""The config.json of a model that is measured in an instant."""

from __future__ import annotations

N_VOCAB = 1024
SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 256,
    "intermediate_size_mlp": 256,
    "vocab_size": N_VOCAB,
}
