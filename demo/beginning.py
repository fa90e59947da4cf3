"""How the small model begins: with the seeds of two circuits among random weights.

To repeat a word, look up a code or recall a name, a transformer needs two heads that work together:
one that looks at the token before, and one that looks for the place behind an earlier occurrence of
the token it stands on ("In-context Learning and Induction Heads", Olsson et al., 2022). Neither is
of use without the other, so that training finds them late: 600 steps of this one, nearly two
million tokens, showed no sign of them. And to know a shape, a transformer must first learn that
patches have neighbours, for which it needs pictures by the ten thousand; one whose heads begin by
looking at neighbours, as a convolution does, needs fewer ("ConViT", d'Ascoli et al., 2021).

This writes a rough draft of both into the random weights; training makes them work. It is all that
this model is not left to find by itself.

Promises to change the initial weights alone, and that the layer which sees across chunks of
attention gets the second head of the first circuit. Does not know the training.
"""

from __future__ import annotations

import math

import torch
from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration


@torch.no_grad()
def begin(model: Llama4ForConditionalGeneration) -> None:
    """Draft both circuits into a model of random weights.

    Its last layer must have no positions, and each layer of its tower four heads.
    """
    _draft_copying(model.language_model)
    _draft_looking_around(model)


def _draft_copying(words: Llama4ForCausalLM) -> None:
    """An induction head: the layers are the first and the last."""
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
    # Fast rotations tell neighbours apart, slow ones keep out the far places where the fast ones
    # come round again: weighed so, half of the attention goes to the token before among 8192.
    for number, frequency in enumerate(words.model.rotary_emb.inv_freq.tolist()):
        real, imaginary = 2 * number, 2 * number + 1
        weight = math.sqrt(frequency)
        keys[real, 0] = weight
        # The first two heads share their keys: one looks a token back, the other two tokens.
        for head in range(2):
            turned = (head + 1) * frequency
            queries[head * width + real, 0] = weight * math.cos(turned)
            queries[head * width + imaginary, 0] = -weight * math.sin(turned)
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


def _draft_looking_around(model: Llama4ForConditionalGeneration) -> None:
    """Heads that look right, left, down and up: a patch away, two in the next layer, and so on."""
    tower = model.vision_model
    # Widths of 128 and 256 need larger weights than those of thousands, for which transformers'
    # deviation of 0.02 is meant; with that one the tower took 175 steps to learn colours, not 50.
    for part in (tower, model.multi_modal_projector):
        for module in part.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for distance, layer in enumerate(tower.model.layers, 1):
        attention = layer.self_attn
        attention.q_proj.weight *= 0.1
        attention.k_proj.weight *= 0.1
        width = attention.head_dim
        theta = tower.config.rope_parameters["rope_theta"]
        # Half of a head turns with the column and half with the row; the two fastest rotations of
        # each tell patches apart. A neighbour of the wanted patch gets a twentieth of its weight.
        weight = math.sqrt(6 * math.sqrt(width))
        for head, place in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
            for axis, steps in enumerate(place):
                for number in range(2):
                    turned = theta ** (-4 * number / width) * distance * steps
                    real = head * width + axis * width // 2 + 2 * number
                    attention.k_proj.bias[real] = weight
                    attention.q_proj.bias[real] = weight * math.cos(turned)
                    attention.q_proj.bias[real + 1] = weight * math.sin(turned)
