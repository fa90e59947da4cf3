"""What the fuzzers share: how long they run, and how sound input is damaged.

A fuzzer says with `fuzz` what no input may do. The ordinary run tries the same few hundred inputs
each time; the heavy one tries new ones for minutes, and hypothesis prints the smallest that fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

_SHARED: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.generate, Phase.target, Phase.shrink],
}
ORDINARY = settings(max_examples=200, derandomize=True, **_SHARED)
HEAVY = settings(max_examples=20_000, **_SHARED)

efforts = pytest.mark.parametrize(
    "effort", [ORDINARY, pytest.param(HEAVY, marks=pytest.mark.heavy)], ids=["ordinary", "heavy"]
)
"""Marks a test that takes an `effort` and passes it to `fuzz`."""


def fuzz(check: Callable[[Any], None], inputs: st.SearchStrategy[Any], effort: settings) -> None:
    """Try `check` on as many `inputs` as the `effort` says; whatever it raises fails the test."""
    effort(given(inputs)(check))()


_WORDS = (
    "",
    "x",
    "a b",
    "\0",
    "\x9b31m",
    "\u202e",
    "\ud800",
    "..",
    "/etc/passwd",
    "²",
    "x" * 10_000,
)
_NUMBERS = (
    *(0, 1, -1, 3, 255, 65_536, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10**5000),
    *(0.0, -0.0, 0.5, 1e39, 1e308, float("inf"), float("nan")),
)
_TREES: tuple[Any, ...] = ([], {}, [None], [[]] * 3, {"x": None}, [0] * 3000, {"": ""})

hostile_values = st.one_of(
    st.sampled_from([None, True, False, *_WORDS, *_NUMBERS, *_TREES]).map(copy.deepcopy),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
)
"""Values of JSON that stand where others belong."""


@st.composite
def damaged_json(draw: st.DrawFn, sound: Any, most: int = 3) -> Any:
    """`sound` with up to `most` of its values replaced, removed or added."""
    value = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, most))):
        value = _damaged_once(draw, value)
    return value


def _damaged_once(draw: st.DrawFn, value: Any) -> Any:
    """Descend by chance into a list or an object, then change one entry."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 20)) == 0:
        return draw(hostile_values)
    entries: Any = value
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    action = draw(st.sampled_from(["replace", "descend", "descend", "remove", "add"]))
    if action == "remove":
        del entries[key]
    elif action == "add" and isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    elif action == "add":
        entries[draw(st.text(max_size=10))] = draw(hostile_values)
    elif action == "descend":
        entries[key] = _damaged_once(draw, entries[key])
    else:
        entries[key] = draw(hostile_values)
    return value


_INTEGERS = (0, 1, 2, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@st.composite
def damaged_bytes(draw: st.DrawFn, sound: bytes, most: int = 4) -> bytes:
    """`sound` with up to `most` bytes or words overwritten, stretches cut out, or its end lost."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        action = draw(st.sampled_from(["byte", "word", "word", "insert", "cut", "truncate"]))
        if action == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif action == "word":
            width = draw(st.sampled_from([2, 4, 8]))
            number = draw(st.sampled_from(_INTEGERS)) & (1 << 8 * width) - 1
            data[at : at + width] = number.to_bytes(width, "little")
        elif action == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif action == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        else:
            del data[at:]
    return bytes(data)
