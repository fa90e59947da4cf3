"""Documents come before the question, each with its name, the same text each time."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from llama4_edge.chat import documents as module
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
    Path("notes/a.bin").write_bytes(b"a\xff")
    Path("notes/b.bin").write_bytes(b"a\x00b")
    Path("notes/c.pdf").write_bytes(b"%PDF-1.7")
    with caplog.at_level(logging.WARNING):
        assert names("notes") == ["notes/a.txt", "notes/deep/b.txt"]
    assert caplog.messages == [
        "notes/a.bin is not UTF-8 text, so it is left out",
        "notes/b.bin is not text, so it is left out",
        "notes/c.pdf is a PDF, not UTF-8 text, so it is left out",
    ]


def test_a_folder_says_of_links_and_pipes_too_that_they_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("notes/loop").symlink_to("loop")
    Path("notes/up").symlink_to("..")
    Path("notes/nothing").symlink_to("missing")
    os.mkfifo("notes/pipe")
    with caplog.at_level(logging.WARNING):
        assert names("notes") == ["notes/a.txt", "notes/deep/b.txt"]
    assert sorted(caplog.messages) == [
        "notes/loop is not a regular file, so it is left out",
        "notes/nothing is not a regular file, so it is left out",
        "notes/pipe is not a regular file, so it is left out",
        "notes/up is a link to a folder, so it is left out",
    ]


def test_of_many_that_are_left_out_the_first_are_named(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(30):
        Path(f"notes/{number:02}.png").write_bytes(b"\x89PNG")
    with caplog.at_level(logging.WARNING):
        assert names("notes") == ["notes/a.txt", "notes/deep/b.txt"]
    assert caplog.messages[0] == "notes/00.png is a picture, not UTF-8 text, so it is left out"
    assert caplog.messages[5:] == ["notes: 25 more are left out, which are not text"]


def test_too_much_for_any_context_is_refused_before_all_of_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_CHARACTERS", 15)
    with pytest.raises(SettingError, match=r"up to book.md are too long.*found 29 .* at most 15"):
        names("notes/a.txt", "notes/deep/b.txt", "book.md")
    monkeypatch.setattr(module, "MAX_FILES", 1)
    with pytest.raises(SettingError, match="notes holds too many files, found more than 1"):
        names("notes")


def test_an_empty_file_is_a_document_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    Path("empty.md").touch()
    with caplog.at_level(logging.WARNING):
        assert names("empty.md") == ["empty.md"]
    assert caplog.messages == ["empty.md is empty"]


def test_a_hard_link_is_the_same_file() -> None:
    Path("copy.md").hardlink_to("book.md")
    assert names("copy.md", "book.md", ".") == ["copy.md", "notes/a.txt", "notes/deep/b.txt"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing.md", "missing.md does not exist"),
        ("*.tex", "no file matches"),
        ("binary", "binary is not UTF-8 text"),
        ("empty", "empty holds no files"),
        ("/dev/zero", "is not a regular file"),
        ("", "the name of a document is empty"),
        ("loop", "loop cannot be read, found Too many levels of symbolic links"),
        ("x.pdf", "x.pdf is a PDF, not UTF-8 text. Make text of it first: pdftotext FILE."),
        ("x.docx", "x.docx is a ZIP archive.*Save it as text first"),
        ("utf16.txt", "utf16.txt is UTF-16, not UTF-8 text. Convert it first: iconv -f UTF-16"),
        (
            "latin1.txt",
            "latin1.txt is not UTF-8 text, found byte 0xe9 at 3. Give UTF-8 text; iconv",
        ),
        ("https://example.org/a.md", "is an address, not a file. Fetch it first"),
    ],
)
def test_what_cannot_be_read_is_one_error(path: str, words: str) -> None:
    Path("binary").write_bytes(b"\xff\x00")
    Path("empty").mkdir()
    Path("loop").symlink_to("loop")
    Path("x.pdf").write_bytes(b"%PDF-1.7")
    Path("x.docx").write_bytes(b"PK\3\4")
    Path("utf16.txt").write_text("caf\xe9", encoding="utf-16")
    Path("latin1.txt").write_text("caf\xe9", encoding="latin-1")
    with pytest.raises(SettingError, match=words):
        with_documents("Who?", [path])


def test_a_name_cannot_end_its_own_tag() -> None:
    Path('a">b').write_text("x", encoding="utf-8")
    assert with_documents("", ['a">b']).startswith('<document name="a&quot;&gt;b">')


def test_wrong_types_are_errors() -> None:
    for paths in (5, [5], None):
        with pytest.raises(SettingError, match="wrong type"):
            with_documents("x", paths)  # type: ignore[arg-type]
