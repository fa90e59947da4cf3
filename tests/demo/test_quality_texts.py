"""Calibration and comparison see different conversations, written as the model reads them."""

from __future__ import annotations

from benchmarks.quality_texts import calibration_text, held_out_text, questions
from demo.training.lessons.mixture import examination


def test_calibration_has_no_question_of_the_examination() -> None:
    text, compared = calibration_text(100), held_out_text()
    alone = [talk.turns[0].question for talk in examination() if len(talk.turns) == 1]
    asked = {f"user<|header_end|>\n\n{question}<|eot|>" for question in alone}
    assert len(asked) > 500
    assert not [question for question in asked if question in text]
    assert all(question in compared for question in asked)


def test_texts_are_the_same_each_time() -> None:
    assert held_out_text() == held_out_text()
    few = calibration_text(20)
    assert few == calibration_text(20) == calibration_text(100)[: len(few)]
    assert questions(10) == questions(10)


def test_wrong_choices_differ_from_the_right_one_in_a_word_or_a_digit() -> None:
    for question in questions(40):
        right = question.choices[question.answer]
        assert len(set(question.choices)) == 4
        for wrong in set(question.choices) - {right}:
            one, other = right.split(" "), wrong.split(" ")
            assert len(one) == len(other)
            assert sum(a != b for a, b in zip(one, other, strict=True)) == 1
