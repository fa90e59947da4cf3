"""The chat templates of a checkpoint, looked for where transformers keeps them.

Promises text by name, or one error that names the file. Does not know what a template does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import VocabularyError
from ..units import told_apart
from ..untrusted import Reader, shown

DEFAULT = "default"
"""The name of the template that a conversation is written with."""

MORE_TEMPLATES = "additional_chat_templates"
"""The directory of further templates, transformers' CHAT_TEMPLATE_DIR."""

_TEMPLATE = "chat_template.jinja"
_SETTINGS = ("tokenizer_config.json", "chat_template.json")
_LONGEST = 2 << 20  # bytes; real ones have up to 20,000
_READER = Reader(VocabularyError, limit=_LONGEST)
_SETTINGS_READER = Reader(VocabularyError, limit=16 << 20)


def read_chat_templates(directory: Path) -> tuple[dict[str, str], str | None]:
    """Templates by name, and a note where one was chosen that is not called default.

    Files come before entries of tokenizer_config.json, as in transformers.

    Raises:
        VocabularyError: one cannot be read, or there are several and none is the default.
    """
    for source, templates in _sources(directory):
        templates = {name: text for name, text in templates.items() if text.strip()}
        for name, text in templates.items():
            if len(text) > _LONGEST:
                found, most = told_apart(len(text), _LONGEST)
                raise VocabularyError(
                    f"{source} has a chat template that is too large",
                    found=found,
                    expected=f"at most {most}",
                )
            if not name or "\0" in name + text:
                raise VocabularyError(
                    f"{source} has a chat template that a GGUF cannot hold",
                    found="an empty name" if not name else f"a NUL character in {shown(name)}",
                )
        if not templates or DEFAULT in templates:
            return templates, None
        if len(templates) > 1:
            raise VocabularyError(
                f"{source} has several chat templates and none called {DEFAULT}",
                found=", ".join(map(shown, list(templates)[:8])),
                expected=f"one called {DEFAULT}, which conversations are written with",
                hint=f"Rename the one to use to {DEFAULT}.",
            )
        (name,) = templates
        note = f"the chat template {shown(name)} is the only one, and is taken for the default"
        return {DEFAULT: templates[name]}, note
    return {}, None


def template_file(directory: Path) -> Path:
    """The file that the templates are from."""
    return next((source for source, _ in _sources(directory)), directory / _TEMPLATE)


def _sources(directory: Path) -> list[tuple[Path, dict[str, str]]]:
    """The first place that has templates, and what it has."""
    files = _files(directory)
    if files:
        return [(directory / _TEMPLATE, files)]
    for name in _SETTINGS:
        path = directory / name
        if os.path.lexists(path):
            found = _SETTINGS_READER.record(path).get("chat_template")
            if found is not None:
                return [(path, _by_name(path, found))]
    return []


def _files(directory: Path) -> dict[str, str]:
    paths = {DEFAULT: directory / _TEMPLATE} if os.path.lexists(directory / _TEMPLATE) else {}
    for path in sorted((directory / MORE_TEMPLATES).glob("*.jinja")):
        paths.setdefault(path.name.removesuffix(".jinja"), path)
    return {_utf8(name): _READER.text(path) for name, path in paths.items()}


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def _by_name(path: Path, value: object) -> dict[str, str]:
    """A template; or a list of objects with name and template, of which the last of a name counts;
    or an object from name to template."""
    if isinstance(value, str):
        return {DEFAULT: value}
    entries: list[Any] = value if isinstance(value, list) else []
    if isinstance(value, Mapping):
        entries = [{"name": name, "template": text} for name, text in value.items()]
    templates = {}
    for number, entry in enumerate(entries):
        name, text = (
            (entry.get("name"), entry.get("template"))
            if isinstance(entry, Mapping)
            else (None, None)
        )
        if not isinstance(name, str) or not isinstance(text, str):
            raise VocabularyError(
                f"{path} has a chat template that is not one: entry {number}",
                found=type(entry).__name__ if not isinstance(entry, Mapping) else "other types",
                expected="name and template, both strings",
            )
        templates[name] = text
    if not isinstance(value, list | Mapping):
        raise VocabularyError(
            f"{path} has a chat_template that is not a template",
            found=type(value).__name__,
            expected="a string, or a list of objects with name and template",
        )
    return templates
