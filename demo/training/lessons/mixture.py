"""The mixture of all subjects in the lessons, and the examination.

Promises: lessons and examinations share no question; the examination is always the same. Does not
know tokens or the model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .conversation import Conversation, Turn
from .knowledge import facts
from .picture import COUNTS, Picture, draw_picture
from .skills import GREETINGS, SKILLS, TRAINED_GREETINGS

_FACTS = facts()


@dataclass(frozen=True)
class Mixture:
    """The share of each skill among the questions of lessons; ``knowledge`` are the facts.

    ``casual`` is the share of greetings that are as short as people type them.
    """

    shares: Mapping[str, float]
    casual: float = 0.0


FIRST = Mixture(
    {
        "knowledge": 0.44,
        "arithmetic": 0.16,
        "lookup": 0.12,
        "name": 0.07,
        "copying": 0.05,
        "greeting": 0.12,
        "unknown": 0.04,
    }
)
# For further training: more of what it would unlearn first.
REFRESHING = Mixture(
    {
        "knowledge": 0.34,
        "arithmetic": 0.12,
        "lookup": 0.12,
        "name": 0.16,
        "copying": 0.14,
        "greeting": 0.08,
        "unknown": 0.04,
    },
    casual=0.3,
)

_CASUAL = ("hi", "hey", "hello", "Hi", "Hey", "hi there", "Hi there", "hello there", "Hello there")
_WELCOME = dict(GREETINGS["English"])["Hello"]

_LOOKS = (
    "What is in the picture?",
    "Describe the picture.",
    "What do you see?",
    "What does the picture show?",
)
_NUMBERS = ("How many shapes are there?", "How many shapes do you see?", "Count the shapes.")
_COLOURS = ("Which colour do they have?", "What colour is it?", "Name the colour.")
_SHAPES = ("Which shape is it?", "What shape do you see?", "Name the shape.")


def lesson(rng: random.Random, mixture: Mixture = FIRST) -> Conversation:
    """One to three training questions in one conversation."""
    turns: list[Turn] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.choices(tuple(mixture.shares), tuple(mixture.shares.values()))[0]
        if kind == "knowledge":
            fact = rng.choice(_FACTS)
            turns.append(Turn(_carelessly(rng, rng.choice(fact.questions)), fact.answer))
        elif kind == "greeting" and mixture.casual and rng.random() < mixture.casual:
            turns.append(Turn(rng.choice(_CASUAL) + rng.choice(("", "!", ".")), _WELCOME))
        else:
            turns.extend(SKILLS[kind](rng, False).turns)
    return Conversation("lesson", tuple(turns))


def training_picture(rng: random.Random) -> Picture:
    """A random training picture: its seed is even."""
    return draw_picture(rng, 2 * rng.randrange(1 << 40))


def picture_lesson(rng: random.Random) -> Conversation:
    """A training picture and the questions about it, in random order."""
    picture = training_picture(rng)
    turns = picture_turns(rng, picture)
    first, *others = rng.sample(turns, len(turns))
    return Conversation("picture", (replace(first, pictures=(picture,)), *others))


def examination(per_skill: int = 60) -> list[Conversation]:
    """Every held-out phrasing of every fact, and ``per_skill`` questions of every other skill."""
    rng = random.Random("examination")
    questions = [
        Conversation("knowledge", (Turn(question, fact.answer),))
        for fact in _FACTS
        for question in fact.held_out
    ]
    for skill in SKILLS.values():
        questions += [skill(rng, True) for _ in range(per_skill)]
    return questions


def picture_examination(count: int = 200) -> list[Conversation]:
    """Held-out pictures, with odd seeds, each with one question."""
    rng = random.Random("picture examination")
    questions = []
    for _ in range(count):
        picture = draw_picture(rng, 2 * rng.randrange(1 << 40) + 1)
        turn = rng.choice(picture_turns(rng, picture))
        questions.append(Conversation("picture", (replace(turn, pictures=(picture,)),)))
    return questions


def questions_and_answers() -> list[str]:
    """Every fixed text of the lessons, as training text of a tokenizer."""
    texts = [text for fact in _FACTS for text in (*fact.questions, fact.answer)]
    return texts + [text for turn in TRAINED_GREETINGS for text in (turn.question, turn.answer)]


def picture_turns(rng: random.Random, picture: Picture) -> list[Turn]:
    """One question of each kind about the only picture: all of it, number, colour and shape."""
    return [
        Turn(rng.choice(_LOOKS), f"{picture.words.capitalize()}.", about=0),
        Turn(rng.choice(_NUMBERS), f"{COUNTS[picture.count - 1].capitalize()}.", about=0),
        Turn(rng.choice(_COLOURS), f"{picture.colour.capitalize()}.", about=0),
        Turn(rng.choice(_SHAPES), f"{picture.shape.capitalize()}.", about=0),
    ]


_BEFORE = ("Please: ", "Tell me: ", "Hi! ", "Hello. ", "A question: ", "Quick question: ", "So, ")
_FILLERS = frozenset(
    "a an the of is are do does in for to it me please you can and how what".split()
)


def _carelessly(rng: random.Random, question: str) -> str:
    """The question as people type it: sometimes without capitals, punctuation or function words."""
    words = question.split(" ")
    if rng.random() < 0.35:
        words = [w for w in words if w.lower() not in _FILLERS or rng.random() > 0.35] or words
    question = " ".join(words)
    if rng.random() < 0.15:
        question = question.lower()
    if rng.random() < 0.15:
        question = question.rstrip("?.")
    if rng.random() < 0.15:
        question = rng.choice(_BEFORE) + question
    return question
