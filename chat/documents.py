"""Documents for a prompt: each with its name, before the question about them.

Promises that nothing is left out without a word, and that the same files give the same text, so
that what a model has read of them can be reused.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..errors import SettingError
from ..ranges import as_tuple
from ..untrusted import Reader

_BEGIN = '<document name="'
_END = "</document>\n\n"  # and what joins it to what follows

logger = logging.getLogger(__name__)

_READER = Reader(SettingError, 1 << 30, hint="Give a file of UTF-8 text.")


@dataclass(frozen=True)
class Document:
    """A text and the name by which a prompt speaks of it."""

    name: str
    text: str

    def __str__(self) -> str:
        return f'<document name="{escape(self.name)}"{self.body}'

    @property
    def body(self) -> str:
        """What a prompt has after its name."""
        ending = "" if self.text.endswith("\n") else "\n"
        return f">\n{self.text}{ending}</document>\n"


def with_documents(
    text: str, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
) -> str:
    """A message's content that has the documents first, each with its name, and then `text`.

        >>> content = with_documents("Who is the narrator?", ["book.md", "notes/"])
        >>> model.chat([{"role": "user", "content": content}])

    Args:
        text: the question, or the task.
        paths: one or several: files of UTF-8 text, folders of such files, or patterns such as
            ``*.md``. Of a folder, hidden files are left out, and files that are not text with a
            warning.

    Raises:
        SettingError: there is no such file, it cannot be read or is not text, a folder holds none,
            or a pattern matches none.
    """
    named = [paths] if isinstance(paths, str | os.PathLike) else as_tuple("paths", paths, "paths")
    return joined(text, read_documents(named))


def joined(text: str, documents: Iterable[Document]) -> str:
    """The documents, then `text`."""
    return "\n".join([*map(str, documents), text])


def documents_in_front(content: str) -> str:
    """The documents that a content which `joined` made begins with, "" where there are none."""
    if not content.startswith(_BEGIN):
        return ""
    return content[: content.rfind(_END) + len(_END)] if _END in content else ""


def read_documents(paths: Iterable[str | os.PathLike[str]]) -> list[Document]:
    """The documents that files, folders and patterns name, each once, in that order.

    Raises:
        SettingError: see `with_documents`.
    """
    documents: dict[str, Document] = {}
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise SettingError("a path is of the wrong type", found=repr(path))
        for file, is_named in _files(os.fspath(path)):
            key = os.path.realpath(file)
            if key not in documents and (text := _text(file, is_named)) is not None:
                documents[key] = Document(file, text)
    return list(documents.values())


def _files(path: str) -> Iterator[tuple[str, bool]]:
    """The files that a path means, and whether a person named each one."""
    if Path(path).is_dir():
        files = sorted(_below(path))
        if not files:
            raise SettingError(f"{path} holds no files", expected="documents of text")
        yield from ((file, False) for file in files)
    elif not os.path.lexists(path) and glob.has_magic(path):
        files = glob.glob(path, recursive=True)  # noqa: PTH207  Path takes no absolute pattern
        matches = sorted(file for file in files if Path(file).is_file())
        if not matches:
            raise SettingError(f"no file matches {path}")
        yield from ((file, True) for file in matches)
    else:
        yield path, True


def _below(folder: str) -> Iterator[str]:
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            str(Path(directory, name))
            for name in files
            if not name.startswith(".") and Path(directory, name).is_file()
        )


def _text(file: str, is_named: bool) -> str | None:
    """The text of a file; None, with a warning, for one of a folder that is not text."""
    try:
        text = _READER.text(file)
        if "\0" in text:
            raise SettingError(f"{file} is not text", found="a NUL", hint=_READER.hint)
    except SettingError as error:
        if is_named:
            raise
        logger.warning("%s, so it is left out", error.problem)
        return None
    return text
