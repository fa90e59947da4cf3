"""What models like the one in the box are calibrated and compared on: their own conversations.

Promises: the calibration text and the text that is compared on share no question; both are written
in the chat template, with the names of control tokens; the same for the same seed. Knows no model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from demo.training.lessons.conversation import Conversation, Turn
from demo.training.lessons.mixture import examination, lesson
from llama4_edge import Question

_CHOICES = 4


def calibration_text(lessons: int = 200) -> str:
    """Training lessons, in the order in which they are drawn."""
    rng = random.Random("calibration")
    return conversation_text(lesson(rng) for _ in range(lessons))


def held_out_text() -> str:
    """The examination with its answers, in random order."""
    questions = examination()
    random.Random("order").shuffle(questions)
    return conversation_text(questions)


def conversation_text(conversations: Iterable[Conversation]) -> str:
    """Conversations as one that goes on and on."""
    return "".join(_turn(turn) for conversation in conversations for turn in conversation.turns)


def _turn(turn: Turn) -> str:
    return f"{_message('user', turn.question)}{_message('assistant', turn.answer)}"


def _message(role: str, text: str) -> str:
    return f"<|header_start|>{role}<|header_end|>\n\n{text}<|eot|>"


def questions(count: int = 120) -> list[Question]:
    """Questions of the examination, their answers beside three that differ in a word or a digit."""
    rng = random.Random("choices")
    asked = [one.turns[0] for one in examination() if len(one.turns) == 1]
    words = sorted({word for turn in asked for word in turn.answer.split()})
    found = []
    for turn in rng.sample(asked, count):
        choices = {turn.answer}
        while len(choices) < _CHOICES:
            choices.add(_near_miss(rng, turn.answer, words))
        shuffled = sorted(choices)
        rng.shuffle(shuffled)
        found.append(Question(turn.question, tuple(shuffled), shuffled.index(turn.answer)))
    return found


def _near_miss(rng: random.Random, answer: str, words: list[str]) -> str:
    """The answer with another digit, where it has any, or another word."""
    digits = [match.start() for match in re.finditer(r"\d", answer)]
    if digits:
        place = rng.choice(digits)
        return f"{answer[:place]}{rng.randint(0, 9)}{answer[place + 1 :]}"
    parts = answer.split(" ")
    parts[rng.randrange(len(parts))] = rng.choice(words)
    return " ".join(parts)
