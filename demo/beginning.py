"""How the small model begins: with the seed of the circuit that copies.

To repeat a word, look up a code or recall a name, a transformer needs two heads that work together:
one that looks at the token before, and one that looks for the place behind an earlier occurrence of
the token it stands on ("In-context Learning and Induction Heads", Olsson et al., 2022). Neither is
of use without the other, so that training finds them late: 600 steps of this one, nearly two
million tokens, showed no sign of them. This writes a rough draft of both into the random weights;
training makes them work. It is the one thing that this model is not left to find by itself.

Promises to change the initial weights alone, and that the layer which sees across chunks of
attention gets the second head. Does not know the training.
"""

from __future__ import annotations

import math

import torch
from transformers import Llama4ForConditionalGeneration

# Rotary frequencies by which a head tells neighbouring positions apart: the fastest ones.
_FREQUENCIES = 3


@torch.no_grad()
def begin(model: Llama4ForConditionalGeneration) -> None:
    """Draft an induction head into a model of random weights, whose last layer has no positions."""
    words = model.language_model
    for layer in words.model.layers:
        # What layers add to the stream begins small, so that the tokens' own embeddings are heard.
        layer.self_attn.o_proj.weight *= 0.1
        block = layer.feed_forward
        if hasattr(block, "experts"):
            block.experts.down_proj *= 0.1
            block = block.shared_expert
        block.down_proj.weight *= 0.1
    embedding, output = words.model.embed_tokens.weight, words.lm_head.weight
    # A token is said where its embedding is found, and one dimension is the same for all tokens.
    output.copy_(embedding)
    embedding[:, 0] = 5 * embedding.std()
    output[:, 0] = 0

    first, last = words.model.layers[0].self_attn, words.model.layers[-1].self_attn
    width = first.head_dim
    keys, queries = first.k_proj.weight, first.q_proj.weight
    keys[:width] *= 0.1
    queries[: 2 * width] *= 0.1
    for number, frequency in enumerate(words.model.rotary_emb.inv_freq[:_FREQUENCIES].tolist()):
        real, imaginary = 2 * number, 2 * number + 1
        keys[real, 0] = 1
        # The first two heads share their keys: one looks a token back, the other two tokens.
        for head in range(2):
            turned = (head + 1) * frequency
            queries[head * width + real, 0] = math.cos(turned)
            queries[head * width + imaginary, 0] = -math.sin(turned)
    seen, written = first.v_proj.weight[:width], first.o_proj.weight[:, :width]
    seen[:, 0] = 0
    written *= 10

    # A query is what the first head would note of this token, a key what it noted at that place.
    noted = torch.linalg.pinv(written)
    last.q_proj.weight[:width] = 1.5 * seen / seen.norm(dim=1).mean()
    last.k_proj.weight[:width] = 1.5 * noted / noted.norm(dim=1).mean()
    last.k_proj.weight[:width, 0] = 0
    # What is found is said.
    found = last.v_proj.weight[:width]
    found *= 4
    found[:, 0] = 0
    last.o_proj.weight[:, :width] = 4 * found.T
