"""The tiny model that the tests of the engine and of what stands on it share."""

from __future__ import annotations

from tests.gguf_maker import N_VOCAB, STR, TinyModel, Value, tiny_model

# The shape of Llama 4's own template, for text.
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|header_start|>{{ message['role'] }}<|header_end|>\n\n{{ message['content'] }}<|eot|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
)


def with_chat_tokens() -> TinyModel:
    """The tiny model with Llama 4's header tokens and its chat template."""
    model = tiny_model()
    tokens = model.keys["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, list)
    # The last two merged words make room, so that the number of tokens stays.
    first = tokens.index("the")
    tokens[first : first + 2] = ["<|header_start|>", "<|header_end|>"]
    types = model.keys["tokenizer.ggml.token_type"].value
    assert isinstance(types, list)
    types[first : first + 2] = [3, 3]
    merges = model.keys["tokenizer.ggml.merges"].value
    assert isinstance(merges, list)
    del merges[1:]
    # Experts of equal weights: where two are nearly tied, rounding decides, and two passes that cut
    # the same tokens differently could visit different ones. (Both would be right.)
    for name, data in model.tensors.items():
        if "_exps" in name:
            data[:] = data[0]
    model.keys["tokenizer.chat_template"] = Value(TEMPLATE, STR)
    return model


def never_ending() -> TinyModel:
    """The same, with logits of the end tokens that are far below all others."""
    model = with_chat_tokens()
    # A direction that every embedding has, and that only the end tokens' rows point against.
    model.tensors["token_embd.weight"][:, 0] = 5.0
    model.tensors["output.weight"][:, 0] = 0.0
    model.tensors["output.weight"][N_VOCAB - 3 :, 0] = -50.0
    return model
