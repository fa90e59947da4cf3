"""The facts can be learnt and examined: each question has one answer, and the numbers are right."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from demo.training.lessons.knowledge import TABLE, facts
from llama4_edge.convert.presets import PRESETS


def test_no_question_belongs_to_two_facts_or_is_both_trained_and_examined() -> None:
    questions = [q for fact in facts() for q in (*fact.questions, *fact.held_out)]
    assert [q for q, n in Counter(q.lower() for q in questions).items() if n > 1] == []


def test_every_fact_has_six_phrasings_to_learn_from_and_two_that_are_kept_back() -> None:
    assert len(facts()) >= 130
    assert [f.answer for f in facts() if len(f.questions) < 6 or len(f.held_out) != 2] == []


def test_answers_are_short_distinct_sentences() -> None:
    answers = [fact.answer for fact in facts()]
    assert [a for a, n in Counter(answers).items() if n > 1] == []
    assert [a for a in answers if not 4 <= len(a.split()) <= 18 or not a.endswith(".")] == []


def test_all_text_is_ascii_without_a_place_left_open() -> None:
    texts = [t for fact in facts() for t in (fact.answer, *fact.questions, *fact.held_out)]
    assert [t for t in texts if not t.isascii() or re.search(r"[{}\n]|  ", t)] == []
    questions = [q for fact in facts() for q in (*fact.questions, *fact.held_out)]
    assert [q for q in questions if q[-1] not in "?." or q[0].islower()] == []


def test_every_word_of_the_examination_is_trained() -> None:
    def words(text: str) -> set[str]:
        return set(re.findall(r"[\w./-]*\w", text.lower()))

    trained = set().union(*(words(q) for fact in facts() for q in fact.questions))
    for fact in facts():
        for question in fact.held_out:
            assert words(question) <= trained, question


@pytest.mark.parametrize("model", ["Scout", "Scout base", "Maverick"])
def test_numbers_of_the_table_are_those_of_the_presets(model: str) -> None:
    config = PRESETS[model.lower().replace(" ", "-")].config
    taught = {a.key: a.values[model] for a in TABLE if a.key is not None and model in a.values}
    assert taught == {key: config[key] for key in taught}
    assert taught["max_position_embeddings"] in (262_144, 1_048_576, 10_485_760)
