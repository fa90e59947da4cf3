"""A conversation as Llama 4's token ids, with those of the answers marked.

Promises: the ids that the chat template and the tokenizer give, with a picture's tokens where Llama
4's processor puts them. Does not know the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from .lessons.conversation import Conversation
from .lessons.picture import Picture

# A picture of one tile: 336 x 336 pixels in patches of 14 x 14, 2 x 2 patches per token.
PICTURE_TOKENS = 144
PICTURE = f"<|image_start|><|image|>{'<|patch|>' * PICTURE_TOKENS}<|image_end|>"


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each 1 if it belongs to an answer, else 0."""

    ids: list[int]
    answers: list[int]


def encode(tokenizer: Tokenizer, conversation: Conversation) -> Encoded:
    """The whole conversation, answers included."""
    ids = [special_id(tokenizer, "<|begin_of_text|>")]
    answers = [0]
    for turn in conversation.turns:
        message = PICTURE * len(turn.pictures) + turn.question
        question = ids_of(tokenizer, f"{_header('user')}{message}<|eot|>{_header('assistant')}")
        answer = ids_of(tokenizer, f"{turn.answer}<|eot|>")
        ids += question + answer
        answers += [0] * len(question) + [1] * len(answer)
    return Encoded(ids, answers)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that may contain special tokens, without a beginning-of-text token."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return number


def pixel_values(picture: Picture) -> npt.NDArray[np.float32]:
    """A picture as the output of Llama 4's image processor: [3, 336, 336], from -1 to 1."""
    channels = picture.pixels().transpose(2, 0, 1).astype(np.float32)
    values: npt.NDArray[np.float32] = channels / np.float32(127.5) - 1
    return values


def _header(role: str) -> str:
    return f"<|header_start|>{role}<|header_end|>\n\n"
