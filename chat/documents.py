"""Documents for a prompt: each with its name, before the question about them.

Promises that nothing is left out without a word, and that the same files give the same text, so
that what a model has read of them can be reused.
"""

from __future__ import annotations

import glob
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..errors import SettingError
from ..ranges import as_tuple, wrong_type
from ..untrusted import Reader

_BEGIN = '<document name="'
_END = "</document>\n\n"  # and what joins it to what follows

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 1 << 26
"""Of all documents together: ten million tokens of text are about 40 million."""

MAX_FILES = 10_000
"""Of one folder."""

_READER = Reader(
    SettingError, MAX_CHARACTERS, hint="Give UTF-8 text; iconv converts other encodings."
)

_MOST_NAMED = 5  # of the files of a folder that are left out

_UTF16 = "Convert it first: iconv -f UTF-16 -t UTF-8 FILE."
_UNPACK = "Unpack it first."
_IN_WORDS = "Describe in words what it shows."

# How files begin that people take for documents; what they are; and what to do.
_KINDS = (
    (b"%PDF-", "a PDF", "Make text of it first: pdftotext FILE."),
    (b"{\\rtf", "RTF", "Save it as text first."),
    (b"\xd0\xcf\x11\xe0", "an Office document", "Save it as text first."),
    (b"PK\3\4", "a ZIP archive, as .docx and .epub are", "Save it as text first: pandoc -t plain."),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"\xfd7zXZ", "compressed by xz", _UNPACK),
    (b"\x89PNG", "a picture", _IN_WORDS),
    (b"\xff\xd8\xff", "a picture", _IN_WORDS),
    (b"GIF8", "a picture", _IN_WORDS),
    (b"\xff\xfe", "UTF-16", _UTF16),
    (b"\xfe\xff", "UTF-16", _UTF16),
    (b"GGUF", "a model", _READER.hint),
)


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
            ``*.md``. Of a folder, hidden files are left out, and what is not text, with a warning.
            A file with several names is read once.

    Raises:
        SettingError: there is no such file, it cannot be read or is not text, a folder holds none,
            or more than `MAX_FILES`, a pattern matches none; or all are longer than any context.
    """
    if not isinstance(text, str):
        raise wrong_type("text", text, "a string")
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


def read_documents(
    paths: Iterable[str | os.PathLike[str]], standard_input: Callable[[], str] | None = None
) -> list[Document]:
    """The documents that files, folders and patterns name, each once, in that order.

    Args:
        standard_input: what ``-`` stands for, if that is no file's name.

    Raises:
        SettingError: see `with_documents`.
    """
    documents: dict[object, Document] = {}
    n_characters = 0
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise SettingError("a path is of the wrong type", found=repr(path))
        for file in _files(os.fspath(path), standard_input):
            key = file.identity
            if key in documents or (text := file.text()) is None:
                continue
            n_characters += len(text)
            if n_characters > MAX_CHARACTERS:
                raise SettingError(
                    f"the documents up to {file.name} are too long for any context",
                    found=f"{n_characters:,} characters",
                    expected=f"at most {MAX_CHARACTERS:,}",
                    hint="Name fewer files.",
                )
            documents[key] = Document(file.name, text)
    return list(documents.values())


class _File:
    """A file that somebody named."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def identity(self) -> object:
        """What is the same for all names of one file."""
        try:
            status = Path(self.name).stat()
        except (OSError, ValueError):
            return self.name
        known = status.st_ino != 0  # not on some file systems
        return (status.st_dev, status.st_ino) if known else os.path.realpath(self.name)

    def text(self) -> str | None:
        """Its text; None for what is left out."""
        text = _text(self.name)
        if not text.strip():
            logger.warning("%s is empty", self.name)
        return text


class _FileOfFolder(_File):
    """A file that is left out where it is not text."""

    def __init__(self, name: str, left_out: _LeftOut) -> None:
        super().__init__(name)
        self._left_out = left_out

    def text(self) -> str | None:
        """Its text; None for what is left out."""
        try:
            return _text(self.name)
        except SettingError as error:
            self._left_out.say(error.problem)
            return None


class _StandardInput(_File):
    """What is piped in."""

    def __init__(self, read: Callable[[], str]) -> None:
        super().__init__("standard input")
        self._read = read

    @property
    def identity(self) -> object:
        """What no file has."""
        return self.name

    def text(self) -> str:
        """All of it."""
        return self._read()


class _LeftOut:
    """Says what of a folder is left out: the first few by name, and then how many more."""

    def __init__(self, folder: str) -> None:
        self._folder, self._count = folder, 0

    def say(self, problem: str) -> None:
        """One is left out."""
        self._count += 1
        if self._count <= _MOST_NAMED:
            logger.warning("%s, so it is left out", problem)

    def end(self) -> None:
        """No more are."""
        if self._count > _MOST_NAMED:
            more = self._count - _MOST_NAMED
            logger.warning("%s: %s more are left out, which are not text", self._folder, more)


def _files(path: str, standard_input: Callable[[], str] | None) -> Iterator[_File]:
    """The files that a path means."""
    if path == "":
        raise SettingError("the name of a document is empty", expected="a file, or . for a folder")
    if path == "-" and standard_input is not None:
        yield _StandardInput(standard_input)
    elif _is(stat.S_ISDIR, path):
        left_out = _LeftOut(path)
        files = sorted(_below(path, left_out))
        if not files:
            raise SettingError(f"{path} holds no files", expected="documents of text")
        yield from (_FileOfFolder(file, left_out) for file in files)
        left_out.end()
    elif not os.path.lexists(path) and glob.has_magic(path):
        names = glob.glob(path, recursive=True)  # noqa: PTH207  Path takes no absolute pattern
        matches = sorted(name for name in names if _is(stat.S_ISREG, name))
        if not matches:
            raise SettingError(f"no file matches {path}")
        yield from map(_File, matches)
    else:
        yield _File(path)


def _below(folder: str, left_out: _LeftOut) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        if error.filename == folder:
            raise SettingError(f"{folder} cannot be read", found=error.strerror)
        left_out.say(f"{error.filename} cannot be read")

    count = 0
    for directory, folders, files in os.walk(folder, onerror=refuse):
        inside = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in inside if not Path(directory, name).is_symlink()]
        for name in inside + files:
            path = str(Path(directory, name))
            if name.startswith(".") or name in folders:
                continue
            if _is(stat.S_ISREG, path):
                count += 1
                yield path
            elif _is(stat.S_ISDIR, path):  # which may be a circle
                left_out.say(f"{path} is a link to a folder")
            else:
                left_out.say(f"{path} is not a regular file")
        if count > MAX_FILES:
            raise SettingError(
                f"{folder} holds too many files",
                found=f"more than {MAX_FILES:,}",
                hint="Name the folders below it that are meant.",
            )


def _is(kind: Callable[[int], bool], path: str) -> bool:
    """Whether there is something of this kind, as `stat` tells it, that may be looked at."""
    try:
        return kind(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def _text(file: str) -> str:
    """The text of a file.

    Raises:
        SettingError: it cannot be read, or is not text; with what to do.
    """
    if file.lower().startswith(("http://", "https://")) and not os.path.lexists(file):
        raise SettingError(f"{file} is an address, not a file", hint="Fetch it first, as text.")
    data = _READER.data(file)
    for beginning, kind, hint in _KINDS:
        if data.startswith(beginning):
            raise SettingError(f"{file} is {kind}, not UTF-8 text", hint=hint)
    text = _READER.decoded(data, file)
    if "\0" in text:
        raise SettingError(f"{file} is not text", found="a NUL", hint=_READER.hint)
    return text
