"""Chat templates are found where transformers finds them, or refused with one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama4_edge.convert.chat_templates import read_chat_templates, template_file
from llama4_edge.errors import VocabularyError

SETTINGS, JINJA = "tokenizer_config.json", "chat_template.jinja"
MORE = "additional_chat_templates"


def write(directory: Path, value: object, name: str = SETTINGS) -> Path:
    path = directory / name
    path.write_text(json.dumps({"chat_template": value}), encoding="utf-8")
    return path


def named(**templates: str) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in templates.items()]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("d", {"default": "d"}),
        (named(default="d", tool_use="t"), {"default": "d", "tool_use": "t"}),
        ({"default": "d", "rag": "r"}, {"default": "d", "rag": "r"}),
        ([*named(default="first"), *named(default="last")], {"default": "last"}),
        ([], {}),
        ({}, {}),
        ("", {}),
        (" \n", {}),
        (None, {}),
        (named(default="d", empty=" "), {"default": "d"}),
    ],
)
def test_templates_by_name(tmp_path: Path, value: object, expected: dict[str, str]) -> None:
    write(tmp_path, value)
    assert read_chat_templates(tmp_path) == (expected, None)


def test_the_only_template_is_the_default_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path, named(tool_use="t"))
    assert read_chat_templates(tmp_path) == (
        {"default": "t"},
        "the chat template 'tool_use' is the only one, and is taken for the default",
    )


def test_files_come_before_settings_and_have_the_names_of_their_files(tmp_path: Path) -> None:
    write(tmp_path, "z", "chat_template.json")
    assert read_chat_templates(tmp_path)[0] == {"default": "z"}
    path = write(tmp_path, named(default="y", other="o"))
    assert read_chat_templates(tmp_path)[0] == {"default": "y", "other": "o"}
    assert template_file(tmp_path) == path
    (tmp_path / JINJA).write_text("d")
    assert read_chat_templates(tmp_path)[0] == {"default": "d"}
    assert template_file(tmp_path) == tmp_path / JINJA
    (tmp_path / MORE).mkdir()
    (tmp_path / MORE / "rag.jinja").write_text("r")
    (tmp_path / MORE / "notes.txt").write_text("x")
    assert read_chat_templates(tmp_path)[0] == {"default": "d", "rag": "r"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (named(a="1", b="2"), "several chat templates and none called default, found 'a', 'b'"),
        (5, "has a chat_template that is not a template, found int"),
        (["text"], "is not one: entry 0, found str"),
        ([{"template": "t"}], "is not one: entry 0"),
        ([{"name": "default"}], "is not one: entry 0"),
        ([{"name": "default", "template": 5}], "is not one: entry 0"),
        ([{"name": ["x"], "template": "t"}], "is not one: entry 0"),
        ([*named(default="d"), None], "is not one: entry 1, found NoneType"),
        ({"default": 5}, "is not one: entry 0"),
        (named(**{"": "t"}), "that a GGUF cannot hold, found an empty name"),
        ("x" * (3 << 20), r"is too large, found 3\.0 MiB, expected at most 2\.0 MiB"),
        ("a\0b", "that a GGUF cannot hold, found a NUL character in 'default'"),
    ],
)
def test_what_is_no_template_is_refused(tmp_path: Path, value: object, said: str) -> None:
    path = write(tmp_path, value)
    with pytest.raises(VocabularyError, match=said) as refused:
        read_chat_templates(tmp_path)
    assert refused.value.problem.startswith(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid x", "is a Git LFS pointer"),
        (b"\xe9", "is not UTF-8 text"),
        (b"x" * (3 << 20), "is too large"),
    ],
)
@pytest.mark.parametrize("name", [JINJA, f"{MORE}/tool_use.jinja"])
def test_a_file_that_is_no_template_is_refused(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / MORE).mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VocabularyError, match=rf"{name} {said}"):
        read_chat_templates(tmp_path)
