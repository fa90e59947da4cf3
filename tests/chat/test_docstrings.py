"""What docstrings say of parameters, in the three forms that people write."""

from __future__ import annotations

import pytest

from llama4_edge.chat.docstrings import docstring_parts

GOOGLE = """Find a train.

    Fast ones first.

    Args:
        start (str): Where it begins:
            a station.
        stop, via: Where it goes.

    Returns:
        stations: not a parameter.
    """
NUMPY = """Find a train.

    Fast ones first.

    Parameters
    ----------
    start : str
        Where it begins:
        a station.
    stop, via : str, optional
        Where it goes.

    Returns
    -------
    stations : list
        Not a parameter.
    """
SPHINX = """Find a train.

    Fast ones first.

    :param start: Where it begins:
        a station.
    :type start: str
    :param str stop: Where it goes.
    :param via: Where it goes.
    :returns: Not a parameter.
    :raises ValueError: never
    """


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, SPHINX])
def test_each_form_says_the_same(text: str) -> None:
    description, parameters = docstring_parts(text)
    assert description == "Find a train.\n\nFast ones first."
    assert parameters == {
        "start": "Where it begins: a station.",
        "stop": "Where it goes.",
        "via": "Where it goes.",
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Only this.",
        "Notes are kept\nParameters\nare not a heading",
        ":smile: is no field",
        "a: b",
    ],
)
def test_what_is_no_section_is_description(text: str) -> None:
    assert docstring_parts(text) == (text, {})
