"""Conversations in a file, one a line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama4_edge import read_conversations
from llama4_edge.errors import SettingError


def test_pictures_are_found_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}'
        "\n\n"
        '{"id": 3, "messages": [{"role": "user", "content": ['
        '{"type": "image", "image": "a/b.png"}, {"type": "image", "image": "/c.png"}, '
        '{"type": "image", "image": "data:image/png;base64,xx"}, {"type": "text", "text": "?"}]}]}'
    )
    assert read_conversations(file) == [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}],
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": os.fspath(tmp_path / "a" / "b.png")},
                    {"type": "image", "image": "/c.png"},
                    {"type": "image", "image": "data:image/png;base64,xx"},
                    {"type": "text", "text": "?"},
                ],
            }
        ],
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "has no conversations"),
        ("nonsense", "line 1 is not JSON"),
        ("[]", "a JSON object"),
        ("{}", "no messages"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": ["x"]}', "a list of objects"),
        ('{"messages": [{"content": "x"}]}', "no role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "invalid content"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "a list of objects"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]}',
            "invalid image",
        ),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(line)
    with pytest.raises(SettingError, match=reason) as error:
        read_conversations(file)
    assert os.fspath(file) in str(error.value)
