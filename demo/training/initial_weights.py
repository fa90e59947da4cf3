"""Initial weights: random, with weak versions of two attention circuits among them.

To repeat a word, look up a code or recall a name, a transformer needs an induction circuit of two
heads: one attends to the previous token, the other to the token after an earlier occurrence of the
current one ("In-context Learning and Induction Heads", Olsson et al., 2022). Neither is useful
without the other, so training finds them late: 600 steps of this training, nearly two million
tokens, showed no sign of them. To recognize a shape, a vision transformer must first learn which
patches are neighbours, from tens of thousands of pictures; with heads that are initialized to
attend to neighbours, like a convolution, it needs fewer ("ConViT", d'Ascoli et al., 2021).

A weak version of both circuits is added to the random weights, and training completes them.
Nothing else is built in.

Promises: only initial weights change; the second head of the induction circuit is in the layer with
full attention, which works across chunks. Does not know the training.
"""

from __future__ import annotations

import math

import torch
from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration


@torch.no_grad()
def draft_circuits(model: Llama4ForConditionalGeneration) -> None:
    """Add both circuits to a model of random weights.

    The last layer must be a NoPE layer, and each layer of the vision tower have four heads.
    """
    _draft_induction(model.language_model)
    _draft_neighbours(model)


def _draft_induction(language: Llama4ForCausalLM) -> None:
    """An induction circuit in the first and the last layer."""
    for layer in language.model.layers:
        # Layers add little to the residual stream at first, so that token embeddings dominate it.
        layer.self_attn.o_proj.weight *= 0.1
        block = layer.feed_forward
        if hasattr(block, "experts"):
            block.experts.down_proj *= 0.1
            block = block.shared_expert
        block.down_proj.weight *= 0.1
    embedding, output = language.model.embed_tokens.weight, language.lm_head.weight
    # An embedding in the stream predicts its own token; dimension 0 is the same for all tokens.
    output.copy_(embedding)
    embedding[:, 0] = 5 * embedding.std()
    output[:, 0] = 0

    first, last = language.model.layers[0].self_attn, language.model.layers[-1].self_attn
    width = first.head_dim
    keys, queries = first.k_proj.weight, first.q_proj.weight
    keys[:width] *= 0.1
    queries[: 2 * width] *= 0.1
    # Fast rotations separate neighbours; slow ones suppress the distant positions at which the fast
    # ones repeat. With these weights half of the attention goes to the previous token of 8192.
    for number, frequency in enumerate(language.model.rotary_emb.inv_freq.tolist()):
        real, imaginary = 2 * number, 2 * number + 1
        weight = math.sqrt(frequency)
        keys[real, 0] = weight
        # The first two heads share their keys: one attends one token back, the other two.
        for head in range(2):
            angle = (head + 1) * frequency
            queries[head * width + real, 0] = weight * math.cos(angle)
            queries[head * width + imaginary, 0] = -weight * math.sin(angle)
    values, outputs = first.v_proj.weight[:width], first.o_proj.weight[:, :width]
    values[:, 0] = 0
    outputs *= 10

    # A query is what the first head would write for this token, a key what it wrote at a position.
    read_back = torch.linalg.pinv(outputs)
    last.q_proj.weight[:width] = 1.5 * values / values.norm(dim=1).mean()
    last.k_proj.weight[:width] = 1.5 * read_back / read_back.norm(dim=1).mean()
    last.k_proj.weight[:width, 0] = 0
    # The token at that position is the prediction.
    copies = last.v_proj.weight[:width]
    copies *= 4
    copies[:, 0] = 0
    last.o_proj.weight[:, :width] = 4 * copies.T


def _draft_neighbours(model: Llama4ForConditionalGeneration) -> None:
    """Heads that attend right, left, down and up: one patch away, two in the next layer, ..."""
    tower = model.vision_model
    # transformers' standard deviation of 0.02 suits widths of thousands. At widths of 128 and 256
    # the tower took 175 steps with it to learn colours, and takes 50 with larger weights.
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
        # Half of a head rotates with the column, half with the row; the two fastest rotations of
        # each separate patches. Neighbours of the intended patch get a twentieth of its weight.
        weight = math.sqrt(6 * math.sqrt(width))
        for head, offset in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
            for axis, steps in enumerate(offset):
                for number in range(2):
                    angle = theta ** (-4 * number / width) * distance * steps
                    real = head * width + axis * width // 2 + 2 * number
                    attention.k_proj.bias[real] = weight
                    attention.q_proj.bias[real] = weight * math.cos(angle)
                    attention.q_proj.bias[real + 1] = weight * math.sin(angle)
