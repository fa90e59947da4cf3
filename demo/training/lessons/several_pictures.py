"""Conversations with several pictures, and questions about each of them.

Promises: a question that names no picture is about the newest, and "the second picture" counts all
of the conversation; no answer follows from an earlier one; the examination is always the same, and
its pictures are in no lesson. Does not know tokens or the model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from .conversation import Conversation, Turn
from .mixture import lesson, picture_turns
from .picture import COUNTS, Picture, draw_picture

# Pictures of each message with a picture, by the number of pictures in the conversation.
_MESSAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((1, 1), (1, 1), (2,)),
    3: ((1, 1, 1), (1, 1, 1), (2, 1), (3,)),
    4: ((1, 1, 1, 1), (2, 1, 1), (3, 1)),
}
_ORDINALS = ("first", "second", "third", "fourth")
_LOOKS = (
    "What is in the {} picture?",
    "Describe the {} picture.",
    "What do you see in the {} picture?",
    "What does the {} picture show?",
)
_NUMBERS = (
    "How many shapes are in the {} picture?",
    "How many shapes does the {} picture have?",
    "Count the shapes in the {} picture.",
)
_COLOURS = (
    "Which colour do the shapes in the {} picture have?",
    "What colour is in the {} picture?",
    "Name the colour in the {} picture.",
)
_SHAPES = (
    "Which shape is in the {} picture?",
    "What shape do you see in the {} picture?",
    "Name the shape in the {} picture.",
)
_QUESTIONS = (_LOOKS, _NUMBERS, _COLOURS, _SHAPES)
_NEXT = ("And this one?", "And in this picture?", "What about this picture?", "And here?")
_LOOK = 0


def several_pictures(rng: random.Random, pictures: Sequence[Picture]) -> Conversation:
    """A conversation with two to four pictures.

    Of each is asked either all at once, or colour, shape and number one by one; now or later.
    """
    left = {
        number: [_LOOK] if rng.random() < 0.4 else rng.sample((1, 2, 3), 3)
        for number in range(len(pictures))
    }
    turns: list[Turn] = []
    seen = 0
    for size in rng.choice(_MESSAGES[len(pictures)]):
        if turns and rng.random() < 0.1:
            turns += lesson(rng).turns
        newest, seen = seen, seen + size
        is_clear = size == 1 and (newest == 0 or rng.random() < 0.75)
        first = _question(rng, pictures, seen, left, newest if is_clear else None)
        turns.append(replace(first, pictures=tuple(pictures[newest:seen])))
        for _ in range(rng.choice((0, 0, 1, 2, 3))):
            if any(left[number] for number in range(seen)):
                is_clear = is_clear and bool(left[newest]) and rng.random() < 0.5
                turns.append(_question(rng, pictures, seen, left, newest if is_clear else None))
    while any(left.values()):
        turns.append(_question(rng, pictures, seen, left, None))
    return Conversation("pictures", tuple(turns))


def several_pictures_examination(count: int = 70) -> list[Conversation]:
    """Conversations with two or three held-out pictures, up to a question about one of them."""
    rng = random.Random("several pictures examination")
    questions = []
    for _ in range(count):
        pictures = [
            draw_picture(rng, 2 * rng.randrange(1 << 40) + 1) for _ in range(rng.choice((2, 3)))
        ]
        turns = several_pictures(rng, pictures).turns
        seen = list(accumulate(len(turn.pictures) for turn in turns))
        ends = [
            number
            for number, turn in enumerate(turns, 1)
            if seen[number - 1] > 1 and turn.about is not None
        ]
        questions.append(Conversation("pictures", turns[: rng.choice(ends)]))
    return questions


def _question(
    rng: random.Random,
    pictures: Sequence[Picture],
    seen: int,
    left: dict[int, list[int]],
    clear: int | None,
) -> Turn:
    """The next question that is left about one of the ``seen`` first pictures.

    About ``clear`` without naming it, or about any of them by its name.
    """
    number = clear
    if number is None:
        number = rng.choice([one for one in range(seen) if left[one]])
    kind = left[number].pop()
    picture = pictures[number]
    if clear is not None:
        turn = picture_turns(rng, picture)[kind]
        if kind == _LOOK and seen > 1 and rng.random() < 0.4:
            turn = replace(turn, question=rng.choice(_NEXT))
        return replace(turn, about=number)
    names = [_ORDINALS[number]]
    if 1 < seen == number + 1:
        names.append("last")
    if 1 < seen == number + 2:
        names.append("previous")
    question = rng.choice(_QUESTIONS[kind]).format(rng.choice(names))
    answers = (picture.words, COUNTS[picture.count - 1], picture.colour, picture.shape)
    return Turn(question, f"{answers[kind].capitalize()}.", about=number)
