from llama4_edge.errors import RecipeError, did_you_mean

TYPES = ("f16", "q8_0", "q4_0", "q4_k", "iq4_xs")


def test_a_slip_of_the_fingers_is_answered_with_the_name_that_was_meant() -> None:
    assert did_you_mean("scuot", ("scout", "maverick", "behemoth")) == "Did you mean scout?"


def test_case_does_not_matter_and_the_choice_keeps_its_own() -> None:
    assert did_you_mean("RTX409", ("rtx4090",)) == "Did you mean rtx4090?"
    assert did_you_mean("cuda1", ("CUDA0", "CPU")) == "Did you mean CUDA0?"


def test_several_close_names_are_all_suggested_the_closest_first() -> None:
    assert did_you_mean("q4_1", TYPES[:4]) == "Did you mean q4_0 or q4_k?"
    assert did_you_mean("iq4xs", TYPES) == "Did you mean iq4_xs?"
    assert did_you_mean("q8o", ("f16", "q8_0", "q4_0")) == "Did you mean q8_0?"
    assert did_you_mean("--tempp", ("--temp", "--top-p", "--system")) == "Did you mean --temp?"


def test_a_name_like_none_of_the_choices_gets_no_suggestion() -> None:
    assert did_you_mean("banana", TYPES) is None
    assert did_you_mean("--bogus", ("--verbose", "--gpu")) is None
    assert did_you_mean("x" * 2**20, TYPES) is None
    assert did_you_mean("--", ("-", "--")) is None
    assert did_you_mean("", TYPES) is None
    assert did_you_mean("int4", ()) is None


def test_the_fields_of_an_error_are_text_for_a_program() -> None:
    error = RecipeError("unknown recipe", found=5, hint="Try int4.")
    assert error.as_dict() == {
        "error": "RecipeError",
        "problem": "unknown recipe",
        "found": "5",
        "expected": None,
        "hint": "Try int4.",
    }
    assert RecipeError("x", expected=("a",)).as_dict()["expected"] == "('a',)"


def test_the_suggestion_is_the_hint_of_an_error() -> None:
    error = RecipeError("unknown recipe", found="imt4", hint=did_you_mean("imt4", ("int4", "int8")))
    assert str(error) == "unknown recipe, found imt4. Did you mean int4?"


def test_an_error_without_a_suggestion_ends_after_what_was_found() -> None:
    error = RecipeError("unknown recipe", found="banana", hint=did_you_mean("banana", TYPES))
    assert str(error) == "unknown recipe, found banana"
