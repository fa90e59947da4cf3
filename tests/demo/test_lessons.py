"""What is examined was never taught, and pictures show what their words say."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import pytest

from demo.training.lessons.conversation import Conversation, Turn
from demo.training.lessons.haystack import needle
from demo.training.lessons.mixture import (
    REFRESHING,
    examination,
    lesson,
    picture_examination,
    picture_lesson,
    training_picture,
)
from demo.training.lessons.picture import COLOURS, COUNTS, SHAPES, Picture
from demo.training.lessons.several_pictures import (
    several_pictures,
    several_pictures_examination,
)
from demo.training.lessons.skills import (
    EXAMINED_GREETINGS,
    GREETINGS,
    LARGEST,
    TRAINED_GREETINGS,
    drill,
    sums,
    worked,
)

# Questions whose words alone say what they ask for; of the others the codes and names count.
WORDED = {"knowledge", "arithmetic", "copying", "greeting", "unknown"}


@pytest.fixture(scope="module")
def taught() -> list[tuple[str, str]]:
    """Lessons' questions and answers of both trainings."""
    rng = random.Random("taught")
    talks = [lesson(rng) for _ in range(4000)]
    talks += [lesson(rng, REFRESHING) for _ in range(4000)]
    talks += [draw(rng) for draw in (drill, sums) for _ in range(400)]
    return [(turn.question, turn.answer) for talk in talks for turn in talk.turns]


def test_no_question_of_the_examination_is_taught(taught: list[tuple[str, str]]) -> None:
    questions = {talk.turns[-1].question for talk in examination() if talk.kind in WORDED}
    assert questions & {question for question, _ in taught} == set()


def test_no_sum_of_the_examination_is_taught_in_other_words(taught: list[tuple[str, str]]) -> None:
    answers = {talk.turns[-1].answer for talk in examination() if talk.kind == "arithmetic"}
    assert len(answers) > 40
    assert answers & {answer for _, answer in taught} == set()


@pytest.mark.parametrize(
    ("a", "sign", "b", "answer"),
    [
        (47, "+", 38, "47 + 38: 7+8=15, 4+3+1=8, so 85."),
        (7, "+", 92, "7 + 92: 7+2=9, 0+9=9, so 99."),
        (3, "+", 4, "3 + 4: 3+4=7, 0+0=0, so 7."),
        (52, "-", 38, "52 - 38: 12-8=4, 5-3-1=1, so 14."),
        (58, "-", 32, "58 - 32: 18-2=16, 5-3=2, so 26."),
        (60, "-", 0, "60 - 0: 10-0=10, 6-0=6, so 60."),
    ],
)
def test_a_sum_is_worked_out_in_columns(a: int, sign: str, b: int, answer: str) -> None:
    assert worked(a, sign, b) == answer


def test_every_step_of_a_sum_is_right() -> None:
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    done = [(a, "+", b, a + b) for a, b in pairs if a + b <= LARGEST]
    done += [(a, "-", b, a - b) for a, b in pairs if a >= b]
    for a, sign, b, result in done:
        ones, tens, conclusion = worked(a, sign, b).removeprefix(f"{a} {sign} {b}: ").split(", ")
        for step in (ones, tens):
            terms, value = step.split("=")
            numbers = [int(term) for term in terms.split(sign)]
            first, rest = numbers[0], sum(numbers[1:])
            assert int(value) == (first + rest if sign == "+" else first - rest)
        # The result is made of digits that stand in the steps.
        assert int(tens.partition("=")[2] + ones[-1]) == result
        assert conclusion == f"so {result}."


def test_codes_and_names_to_be_remembered_are_others_than_those_taught(
    taught: list[tuple[str, str]],
) -> None:
    answers = {talk.turns[-1].answer for talk in examination() if talk.kind in ("lookup", "name")}
    codes = {code for answer in answers for code in re.findall(r"\d{4,}", answer)}
    known = {code for _, answer in taught for code in re.findall(r"\d{4,}", answer)}
    assert len(codes) > 50
    assert codes & known == set()
    names = {answer for answer in answers if answer.startswith("Your name")}
    assert len(names) > 3
    assert names & {answer for _, answer in taught} == set()


def digest(talks: list[Conversation]) -> str:
    return sha256(repr(talks).encode()).hexdigest()[:16]


def test_the_lessons_of_a_seed_and_the_examination_never_change() -> None:
    # The published model was trained on these, and its scores are of these.
    rng = random.Random("lessons")
    assert digest([lesson(rng) for _ in range(500)]) == "ab72f901aca91b68"
    assert digest([picture_lesson(rng) for _ in range(100)]) == "7b1e6c885b36f0be"
    assert digest(examination()) == "c81033b8464ad5a9"
    assert digest(picture_examination()) == "352867fa1e650931"
    assert digest(several_pictures_examination()) == "19621b212cc81a24"


def test_the_lessons_of_further_training_never_change() -> None:
    rng = random.Random("tuning")
    assert digest([lesson(rng, REFRESHING) for _ in range(500)]) == "dc4876462f6d49e3"
    talks = [
        several_pictures(rng, [training_picture(rng) for _ in range(number)])
        for number in (2, 3, 4) * 30
    ]
    assert digest(talks) == "67bdde6a99a87185"


def test_every_fact_is_examined_twice_and_every_skill_sixty_times() -> None:
    kinds = [talk.kind for talk in examination()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"knowledge": 400} | dict.fromkeys(
        ("arithmetic", "lookup", "name", "copying", "greeting", "unknown"), 60
    )


def test_greetings_of_all_twelve_languages_are_taught_and_examined() -> None:
    assert len(GREETINGS) == 12
    for pairs in GREETINGS.values():
        answers = {answer for _, answer in pairs}
        assert answers & {turn.answer for turn in TRAINED_GREETINGS} == answers
    assert len(EXAMINED_GREETINGS) > 60


def test_a_needle_stands_where_it_was_put_and_is_asked_for() -> None:
    rng = random.Random(1)
    talk = needle(
        rng, True, 3000, lambda text: len(text.split()), codes=3, questions=3, depths=(0, 0.5, 1)
    )
    message = talk.turns[0].question
    assert 3000 <= len(message.split()) < 3100
    places = sorted(
        message.index(re.findall(r"\d{4,}", turn.answer)[0]) / len(message) for turn in talk.turns
    )
    assert places == pytest.approx([0, 0.5, 1], abs=0.02)


def test_the_pixels_of_a_picture_never_change() -> None:
    pixels = Picture("red", "star", 3, 7).pixels()
    assert pixels.shape == (336, 336, 3)
    assert pixels.dtype == np.uint8
    assert sha256(pixels.tobytes()).hexdigest()[:16] == "8b542bbd042f9429"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", range(1, len(COUNTS) + 1))
def test_a_picture_has_as_many_shapes_as_it_says(shape: str, count: int) -> None:
    assert patches(Picture("blue", shape, count, count).pixels()) == count


def test_the_labels_of_a_place_are_what_its_pixels_show() -> None:
    picture = Picture("green", "square", 3, 7)
    ink = (picture.pixels().astype(int).sum(axis=2) < 600).reshape(12, 28, 12, 28)
    labels = np.array(picture.place_labels(12)).reshape(12, 12, 2)
    assert labels[..., 1].sum() == 3
    # In the places of centres nearly all is ink, and outside of the shapes' circles nothing is.
    shares = ink.mean(axis=(1, 3))
    assert shares[labels[..., 1] == 1].min() > 0.9
    middles = ink[:, 13:15, :, 13:15].mean(axis=(1, 3))
    assert middles[labels[..., 0] == 0].max() == 0
    assert set(labels[..., 0].ravel()) == {0, 1 + SHAPES.index("square")}


def patches(pixels: npt.NDArray[np.uint8]) -> int:
    """How many separate patches of ink a picture has."""
    ink = pixels.astype(int).sum(axis=2) < 600
    number = np.where(ink, np.arange(1, ink.size + 1).reshape(ink.shape), 0)
    while True:
        # Each pixel of ink takes the greatest number around it, corners included.
        around = np.lib.stride_tricks.sliding_window_view(np.pad(number, 1), (3, 3))
        spread = np.where(ink, around.max(axis=(2, 3)), 0)
        if (spread == number).all():
            return len(np.unique(number[ink]))
        number = spread


def test_pictures_of_all_kinds_are_taught_and_none_of_the_examination() -> None:
    rng = random.Random(5)
    taught = [picture for _ in range(2000) for picture in picture_lesson(rng).pictures]
    kinds = {(picture.colour, picture.shape, picture.count) for picture in taught}
    assert len(kinds) == len(COLOURS) * len(SHAPES) * len(COUNTS)
    assert {picture.seed % 2 for picture in taught} == {0}
    examined = picture_examination() + several_pictures_examination()
    assert {picture.seed % 2 for talk in examined for picture in talk.pictures} == {1}


def told(turn: Turn, pictures: Sequence[Picture]) -> Picture:
    """The picture that the words of a question mean, of those seen until then."""
    ordinal = re.search(r"the (first|second|third|fourth|last|previous) picture", turn.question)
    places = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1, "previous": -2}
    return pictures[-1 if ordinal is None else places[ordinal[1]]]


def test_every_question_of_several_pictures_has_the_answer_of_the_one_it_means() -> None:
    rng = random.Random("several")
    n_about = 0
    for number in range(600):
        pictures = [training_picture(rng) for _ in range(2 + number % 3)]
        talk = several_pictures(rng, pictures)
        assert talk.pictures == tuple(pictures)
        seen: list[Picture] = []
        for turn in talk.turns:
            seen += turn.pictures
            if turn.about is None:
                continue
            n_about += 1
            picture = told(turn, seen)
            assert picture is pictures[turn.about]
            count = COUNTS[picture.count - 1]
            answers = {picture.words, count, picture.colour, picture.shape}
            assert turn.answer.lower().rstrip(".") in answers
    assert n_about > 3000


def test_each_picture_of_several_is_asked_about() -> None:
    rng = random.Random("several")
    for number in range(200):
        talk = several_pictures(rng, [training_picture(rng) for _ in range(2 + number % 3)])
        assert {turn.about for turn in talk.turns} >= set(range(2 + number % 3))


def test_the_examination_of_several_pictures_ends_with_a_question_about_one_of_two_or_three() -> (
    None
):
    seen: Counter[int] = Counter()
    for talk in several_pictures_examination():
        seen[len(talk.pictures)] += 1
        assert talk.turns[-1].about is not None
    assert seen == {2: 43, 3: 27}


def test_short_greetings_are_among_the_lessons_of_further_training_and_not_examined() -> None:
    rng = random.Random("casual")
    talks = [lesson(rng, REFRESHING) for _ in range(3000)]
    answers = {turn.question: turn.answer for talk in talks for turn in talk.turns}
    assert answers["hi"] == answers["Hey!"] == "Hello! How can I help you?"
    assert not {turn.question for turn in EXAMINED_GREETINGS} & answers.keys()
