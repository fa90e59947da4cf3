from __future__ import annotations

import random
from itertools import pairwise

import pytest

from llama4_edge.chat.streaming import TextStream

TEXT = "Ça va? 日本語 नमस्ते 👩‍👩‍👧 <|eot|> done\n\nUser: ENDEN END"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def text_of(parts: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, str | None]:
    stream = TextStream(stop)
    text = "".join(stream.push(part) for part in parts)
    return text + stream.finish(), stream.matched


@pytest.mark.parametrize("stop", [(), ("END",), ("\n\nUser:", "日x"), ("語 न", "a"), ("absent",)])
@pytest.mark.parametrize("damage", [b"", b"\xff", b"\xe6\x97", b"\xf0\x9f\x91"])
def test_the_text_does_not_depend_on_the_cuts(stop: tuple[str, ...], damage: bytes) -> None:
    data = TEXT.encode() + damage
    whole = text_of([data], stop)
    draw = random.Random(0)
    assert text_of([bytes([byte]) for byte in data], stop) == whole
    for _ in range(200):
        cuts = [draw.randrange(len(data) + 1) for _ in range(draw.randrange(12))]
        assert text_of(pieces(data, cuts), stop) == whole


def test_random_bytes_decode_as_python_decodes_them_whole() -> None:
    draw = random.Random(1)
    for _ in range(300):
        data = bytes(draw.randrange(256) for _ in range(30))
        assert text_of([bytes([byte]) for byte in data])[0] == data.decode("utf-8", "replace")


def test_a_character_appears_with_its_last_byte() -> None:
    stream = TextStream()
    assert [stream.push(bytes([byte])) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]


def test_half_a_character_at_the_end_is_a_replacement_character() -> None:
    stream = TextStream()
    assert stream.push(b"ok\xe6\x97") == "ok"
    assert stream.finish() == "�"


def test_an_invalid_byte_does_not_wait_for_the_end() -> None:
    stream = TextStream()
    assert stream.push(b"a\xffb") == "a�b"


def test_the_beginning_of_a_stop_string_is_held_back_until_decided() -> None:
    stream = TextStream(["<end>"])
    assert stream.push(b"text <e") == "text "
    assert stream.push(b"lse> <en") == "<else> "
    assert stream.push(b"d> more") == ""
    assert stream.matched == "<end>"


def test_text_held_back_is_given_at_the_end() -> None:
    stream = TextStream(["<end>"])
    assert stream.push(b"a <en") == "a "
    assert stream.finish() == "<en"
    assert stream.matched is None


def test_a_stop_string_at_the_beginning_leaves_no_text() -> None:
    assert text_of([b"END of it"], ("END",)) == ("", "END")


def test_a_stop_string_that_overlaps_itself_is_found() -> None:
    assert text_of([b"x", b"aa", b"aab"], ("aaab",)) == ("xa", "aaab")


def test_the_stop_string_that_is_complete_first_wins() -> None:
    # "b" is complete one character before "abc" is.
    assert text_of([b"abc"], ("abc", "b")) == ("a", "b")


def test_of_two_stop_strings_complete_together_the_longer_wins() -> None:
    assert text_of([b"xyz"], ("z", "yz")) == ("x", "yz")


def test_nothing_follows_a_stop_string() -> None:
    stream = TextStream(["."])
    assert stream.push(b"one. two") == "one"
    assert stream.push(b" three") == ""
    assert stream.finish() == ""
