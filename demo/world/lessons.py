"""What is taught and what is asked: the mixture of all skills, and the examination.

Promises: lessons and examinations share no question; the examination is the same every time. Does
not know tokens or the model.
"""

from __future__ import annotations

import random

from .conversation import Conversation, Turn
from .knowledge import facts
from .picture import COUNTS, Picture, draw_picture
from .skills import SKILLS, TRAINED_GREETINGS

_FACTS = facts()

# The share of each skill among the questions of a lesson; knowledge of facts is the first.
_SHARES = {
    "knowledge": 0.44,
    "arithmetic": 0.16,
    "lookup": 0.12,
    "name": 0.07,
    "copying": 0.05,
    "greeting": 0.12,
    "unknown": 0.04,
}

_LOOKS = (
    "What is in the picture?",
    "Describe the picture.",
    "What do you see?",
    "What does the picture show?",
)
_NUMBERS = ("How many shapes are there?", "How many shapes do you see?", "Count the shapes.")
_COLOURS = ("Which colour do they have?", "What colour is it?", "Name the colour.")
_SHAPES = ("Which shape is it?", "What shape do you see?", "Name the shape.")


def lesson(chance: random.Random) -> Conversation:
    """One to three questions of training, one after the other in one conversation."""
    turns: list[Turn] = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        kind = chance.choices(tuple(_SHARES), tuple(_SHARES.values()))[0]
        if kind == "knowledge":
            fact = chance.choice(_FACTS)
            turns.append(Turn(_carelessly(chance, chance.choice(fact.asked)), fact.answer))
        else:
            turns.extend(SKILLS[kind](chance, False).turns)
    return Conversation("lesson", tuple(turns))


def draw_taught(chance: random.Random) -> Picture:
    """A picture that is in no examination."""
    return draw_picture(chance, 2 * chance.randrange(1 << 40))


def picture_lesson(chance: random.Random) -> Conversation:
    """A picture of training and the questions about it, in any order."""
    picture = draw_taught(chance)
    turns = _picture_turns(chance, picture)
    return Conversation("picture", tuple(chance.sample(turns, len(turns))), picture)


def examination(per_skill: int = 60) -> list[Conversation]:
    """Every held-out phrasing of every fact, and ``per_skill`` questions of every other skill."""
    chance = random.Random("examination")
    questions = [
        Conversation("knowledge", (Turn(said, fact.answer),))
        for fact in _FACTS
        for said in fact.examined
    ]
    for skill in SKILLS.values():
        questions += [skill(chance, True) for _ in range(per_skill)]
    return questions


def picture_examination(count: int = 200) -> list[Conversation]:
    """Pictures that no lesson shows, each with one question."""
    chance = random.Random("picture examination")
    questions = []
    for _ in range(count):
        picture = draw_picture(chance, 2 * chance.randrange(1 << 40) + 1)
        turn = chance.choice(_picture_turns(chance, picture))
        questions.append(Conversation("picture", (turn,), picture))
    return questions


def questions_and_answers() -> list[str]:
    """Every fixed text of the lessons, for a tokenizer to learn its words from."""
    texts = [text for fact in _FACTS for text in (*fact.asked, fact.answer)]
    return texts + [text for turn in TRAINED_GREETINGS for text in (turn.said, turn.answer)]


def _picture_turns(chance: random.Random, picture: Picture) -> list[Turn]:
    """One question of each kind about a picture."""
    return [
        Turn(chance.choice(_LOOKS), f"{picture.words.capitalize()}."),
        Turn(chance.choice(_NUMBERS), f"{COUNTS[picture.count - 1].capitalize()}."),
        Turn(chance.choice(_COLOURS), f"{picture.colour.capitalize()}."),
        Turn(chance.choice(_SHAPES), f"{picture.shape.capitalize()}."),
    ]


_BEFORE = ("Please: ", "Tell me: ", "Hi! ", "Hello. ", "A question: ", "Quick question: ", "So, ")
_FILLERS = frozenset(
    "a an the of is are do does in for to it me please you can and how what".split()
)


def _carelessly(chance: random.Random, said: str) -> str:
    """The question as people type it: now and then without a capital, a mark, or a small word."""
    words = said.split(" ")
    if chance.random() < 0.35:
        words = [w for w in words if w.lower() not in _FILLERS or chance.random() > 0.35] or words
    said = " ".join(words)
    if chance.random() < 0.15:
        said = said.lower()
    if chance.random() < 0.15:
        said = said.rstrip("?.")
    if chance.random() < 0.15:
        said = chance.choice(_BEFORE) + said
    return said
