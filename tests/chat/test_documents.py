"""Documents come before the question, each with its name, the same text each time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llama4_edge.chat.documents import read_documents, with_documents
from llama4_edge.errors import SettingError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("book.md").write_text("Call me Ishmael.", encoding="utf-8")
    notes = Path("notes/deep")
    notes.mkdir(parents=True)
    (notes / "b.txt").write_text("second\n", encoding="utf-8")
    (notes.parent / "a.txt").write_text("first\n", encoding="utf-8")
    (notes.parent / ".hidden").write_text("no", encoding="utf-8")
    return tmp_path


def names(*paths: str) -> list[str]:
    return [document.name for document in read_documents(paths)]


def test_each_document_has_its_name_and_the_question_comes_last() -> None:
    assert with_documents("Who?", "book.md") == (
        '<document name="book.md">\nCall me Ishmael.\n</document>\n\nWho?'
    )


def test_a_folder_is_read_in_the_order_of_its_names_without_hidden_files() -> None:
    assert names("notes") == ["notes/a.txt", "notes/deep/b.txt"]


def test_a_pattern_is_expanded_where_no_file_has_that_name() -> None:
    Path("z[1].md").write_text("z", encoding="utf-8")
    assert names("*.md") == ["book.md", "z[1].md"]
    assert names("z[1].md") == ["z[1].md"]
    assert names("**/*.txt") == ["notes/a.txt", "notes/deep/b.txt"]


def test_a_file_that_is_named_twice_is_read_once() -> None:
    Path("link.md").symlink_to("book.md")
    assert names("book.md", "./book.md", "*.md") == ["book.md"]


def test_what_is_not_text_is_left_out_of_a_folder_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("notes/a.bin").write_bytes(b"\xff\xfe\x00")
    Path("notes/b.bin").write_bytes(b"a\x00b")
    with caplog.at_level(logging.WARNING):
        assert names("notes") == ["notes/a.txt", "notes/deep/b.txt"]
    assert caplog.messages == [
        "notes/a.bin is not UTF-8 text, so it is left out",
        "notes/b.bin is not text, so it is left out",
    ]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.md", "missing.md does not exist"),
        ("*.pdf", "no file matches"),
        ("binary", "binary is not UTF-8 text"),
        ("empty", "empty holds no files"),
        ("/dev/zero", "is not a regular file"),
    ],
)
def test_what_cannot_be_read_is_one_error(path: str, words: str) -> None:
    Path("binary").write_bytes(b"\xff\x00")
    Path("empty").mkdir()
    with pytest.raises(SettingError, match=words):
        with_documents("Who?", [path])


def test_a_name_cannot_end_its_own_tag() -> None:
    Path('a">b').write_text("x", encoding="utf-8")
    assert with_documents("", ['a">b']).startswith('<document name="a&quot;&gt;b">')


def test_wrong_types_are_errors() -> None:
    for paths in (5, [5], None):
        with pytest.raises(SettingError, match="wrong type"):
            with_documents("x", paths)  # type: ignore[arg-type]
