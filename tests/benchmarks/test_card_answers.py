"""Answers in words: what they mean, and whether that is right."""

from __future__ import annotations

import pytest

from benchmarks.card_answers import judged_choice, judged_open, judged_value, letter_in, numbers_in

ANIMALS = ("a red fox", "a fox", "a wolf", "none of these")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The best answer is C.", "C"),
        ("First A looks right.\nBut no: the best answer is C", "C"),
        ("The best answer is [B].", "B"),
        ("The best answer is (d)", "D"),
        ("**The best answer is C.**", "C"),
        ("The best answer is **C**: a wolf.", "C"),
        ("The final answer is: $\\boxed{B}$", "B"),
        ("So we get \\boxed{\\text{D}}.", "D"),
        ("Answer: c", "C"),
        ("answer is option b.", "B"),
        ("The correct option is 'A'.", "A"),
        ("The answer is A because foxes are red.", "A"),
        ("The answer to the question is B", "B"),
        ("C", "C"),
        ("(c)", "C"),
        ("b.", "B"),
        ("I think about it.\n\nC", "C"),
        ("C) a wolf", "C"),
        ("Because it howls, I take (C).", "C"),
        ("It howls, as wolves do.\nIt is a wolf.", "C"),
        ("It is a red fox.", "A"),
        ("A wolf", "C"),
        ("The answer is a wolf.", "C"),
        ("None of these", "D"),
        # Nothing, or too much, is meant.
        ("", None),
        ("I cannot see the picture.", None),
        ("A fox, or a wolf.", None),
        ("The best answer is X.", None),
        ("The best answer is E.", None),
        ("It is neither (A) nor (B).", None),
        ("The answer is a matter of taste.", None),
        ("An answer as such is hard to give.", None),
    ],
)
def test_the_letter_that_is_meant(text: str, letter: str | None) -> None:
    assert letter_in(text, ANIMALS) == letter


def test_what_is_not_found_is_wrong() -> None:
    assert judged_choice("The best answer is b.", ANIMALS, "B").right
    assert not judged_choice("The best answer is b.", ANIMALS, "A").right
    silent = judged_choice("Who knows?", ANIMALS, "A")
    assert (silent.found, silent.right) == (None, False)


def test_options_that_are_numbers_are_told_apart() -> None:
    options = ("5", "15", "-5", "1.5")
    assert letter_in("That makes 15.", options) == "B"
    assert letter_in("That makes 1.5", options) == "D"
    assert letter_in("The answer is 5.", options) == "A"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,234.5 and -7", [1234.5, -7]),
        ("$13.00, or 25%", [13, 25]),
        ("3/4 of \\frac{1}{2}", [0.75, 0.5]),
        ("1.2e3 and 1.2 × 10^{-3}", [1200, 0.0012]),  # noqa: RUF001
        ("three of twelve", [3, 12]),
        ("−4", [-4]),  # noqa: RUF001
        ("x2, H2O, v1.2.3", []),
        ("1/0", [1]),
        ("", []),
    ],
)
def test_numbers(text: str, numbers: list[float]) -> None:
    assert numbers_in(text) == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("The answer is 24.", ["24"], True),
        ("The answer is 24.004", ["24.00"], True),
        ("The answer is 24.1", ["24"], False),
        ("4 × 6 = 24", ["24"], True),  # noqa: RUF001
        ("So it costs $1,024 in all.", ["1024"], True),
        ("The answer is the Baroque.", ["Renaissance", "baroque"], True),
        ("It is Baroque, I suppose.\nThe answer is Gothic.", ["baroque"], False),
        ("", ["24"], False),
    ],
)
def test_open_questions(text: str, answers: list[str], right: bool) -> None:
    assert judged_open(text, answers).right is right


@pytest.mark.parametrize(
    ("text", "answer", "kind", "precision", "right"),
    [
        ("The answer is 7.", "7", "integer", None, True),
        ("There are seven of them.", "7", "integer", None, True),
        ("3 + 4 = 7", "7", "integer", None, True),
        ("The answer is 7 of the 9 shapes.", "7", "integer", None, True),
        ("The answer is 7.9", "7", "integer", None, True),  # as the published rule cuts it
        ("The answer is 8", "7", "integer", None, False),
        ("I count the shapes: none.", "7", "integer", None, False),
        ("The answer is 1.25", "1.3", "float", 1, False),  # rounded half to even, as there
        ("The answer is 1.26", "1.3", "float", 1, True),
        ("The answer is 1.249", "1.25", "float", 2, True),
        ("The answer is 1.2", "1.25", "float", 2, False),
        ("The answer is $\\boxed{\\frac{1}{2}}$", "0.5", "float", 1, True),
        ("The answer is [1, 2.0, 3]", "[1, 2, 3]", "list", None, True),
        ("First [3], then [1, 2].", "[1, 2]", "list", None, True),
        ("The answer is 1, 2", "[1, 2]", "list", None, False),
        ("The answer is [1, 2, 3]", "[1, 2]", "list", None, False),
        ("The answer is a circle.", "circle", "text", None, True),
    ],
)
def test_values(text: str, answer: str, kind: str, precision: int | None, right: bool) -> None:
    assert judged_value(text, answer, kind, precision).right is right


def test_a_unit_is_no_number() -> None:
    assert judged_value("The answer is 5 m2", "5", "integer", unit="m2").right
    assert judged_value("The answer is $12", "12", "integer", unit="$").right


def test_nothing_that_is_written_is_evaluated() -> None:
    assert not judged_value("[__import__('os')]", "[1]", "list").right
    assert not judged_value("[" * 10_000, "[1]", "list").right
    assert not judged_value("[" + "1," * 100_000 + "]", "[1]", "list").right
