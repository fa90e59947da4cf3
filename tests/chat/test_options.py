from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from llama4_edge.chat.options import MAX_ANSWERS, AnswerOptions, AnswerSettings
from llama4_edge.errors import SettingError
from llama4_edge.runtime.sampling import Sampling

SAMPLING = {one.name for one in fields(Sampling)}


def test_the_keywords_are_the_fields_of_sampling_and_of_the_settings() -> None:
    settings = {one.name for one in fields(AnswerSettings)}
    assert set(AnswerOptions.__annotations__) == SAMPLING | settings


def test_fields_given_flat_are_those_of_sampling() -> None:
    flat: AnswerOptions = {"temperature": 0.2, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "seed": 7}
    sampling = Sampling(temperature=0.2, top_k=3, top_p=0.5, min_p=0.1, seed=7)
    assert AnswerSettings.of(flat) == AnswerSettings(sampling)


def test_fields_given_flat_win_over_those_of_sampling() -> None:
    usual = Sampling(temperature=0.2, seed=5)
    settings = AnswerSettings.of({"sampling": usual, "seed": None, "top_k": 1})
    assert settings.sampling == Sampling(temperature=0.2, seed=None, top_k=1)


def test_a_given_sampling_wins_over_the_usual_one() -> None:
    usual, given = Sampling(temperature=0.2), Sampling(top_k=3)
    assert AnswerSettings.of({}, usual).sampling == usual
    assert AnswerSettings.of({"sampling": given}, usual).sampling == given
    assert AnswerSettings.of({"seed": 1}, usual).sampling == Sampling(temperature=0.2, seed=1)


def test_a_string_is_one_stop_string() -> None:
    assert AnswerSettings.of({"stop": "END"}).stop == ("END",)
    assert AnswerSettings.of({"stop": ["a", "b"]}).stop == ("a", "b")
    assert AnswerSettings.of({}).stop == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ""}, "stop cannot end a text, found '', expected a string of at least one"),
        ({"stop": ["a", ""]}, "found ['a', '']"),
        ({"stop": [1]}, "found [1]"),
        ({"stop": 1}, "found 1"),
        ({"stop": None}, "found None"),
        ({"drafts": 1}, "drafts"),
        ({"max_tokens": -1}, "max_tokens is outside its range, found -1, expected None or a whole"),
        ({"max_tokens": 1.0}, "found 1.0"),
        ({"max_tokens": True}, "found True"),
        ({"max_tokens": "5"}, "found '5'"),
        ({"sampling": {}}, "sampling is of the wrong type, found {}, expected a Sampling"),
        ({"sampling": None}, "sampling is of the wrong type, found None"),
        ({"temperature": "0"}, "temperature is outside its range, found '0'"),
        ({"temperature": None}, "temperature is outside its range, found None"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(options: Any, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        AnswerSettings.of(options)
    assert message in str(caught.value)


def test_an_unknown_keyword_is_pythons_own_error_with_the_name_that_was_meant() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'") as caught:
        AnswerSettings.of({"temprature": 0})
    assert "temperature" in str(caught.value).removeprefix("unexpected keyword argument")


@pytest.mark.parametrize("n", [0, -1, MAX_ANSWERS + 1, 2**70, True, "2"])
def test_a_number_of_answers_that_is_none_is_refused(n: Any) -> None:
    with pytest.raises(SettingError, match=f"n is outside its range.*1 to {MAX_ANSWERS}"):
        AnswerSettings().each(n)
