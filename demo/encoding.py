"""A conversation as Llama 4's token ids, and which of them the model is to say.

Promises: the ids that the chat template and the tokenizer give, with a picture's tokens as Llama
4's processor places them. Does not know the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .world.conversation import Conversation
from .world.picture import Picture

# A picture of one tile: 336 x 336 pixels in patches of 14, four of which make a token.
PICTURE_TOKENS = 144
PICTURE = f"<|image_start|><|image|>{'<|patch|>' * PICTURE_TOKENS}<|image_end|>"


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each whether the model says it."""

    ids: list[int]
    answers: list[int]


def encode(tokenizer: Tokenizer, conversation: Conversation) -> Encoded:
    """The whole conversation, answers included."""
    ids = [tokenizer.token_to_id("<|begin_of_text|>")]
    answers = [0]
    picture = PICTURE if conversation.picture is not None else ""
    for turn in conversation.turns:
        asked = ids_of(
            tokenizer, f"{_header('user')}{picture}{turn.said}<|eot|>{_header('assistant')}"
        )
        spoken = ids_of(tokenizer, f"{turn.answer}<|eot|>")
        ids += asked + spoken
        answers += [0] * len(asked) + [1] * len(spoken)
        picture = ""
    return Encoded(ids, answers)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text in which special tokens may stand, with nothing put before it."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def pixel_values(picture: Picture) -> npt.NDArray[np.float32]:
    """A picture as Llama 4's image processor hands it on: [3, 336, 336], from -1 to 1."""
    return picture.pixels().transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - 1


def _header(role: str) -> str:
    return f"<|header_start|>{role}<|header_end|>\n\n"
