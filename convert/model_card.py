"""What a model says of itself: the YAML at the top of README.md, and its sampling defaults.

Promises text for exactly the fields that a GGUF names, within bounds, or one error that names the
file. Scalars stay as they are written: ``license: 5`` is "5", a date is its text. Aliases are
refused, because a few of them can stand for gigabytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..untrusted import Reader, brief

if TYPE_CHECKING:
    import yaml

_HINT = "Repair or remove it: the model does not need it."
_CARD = Reader(CheckpointError, limit=16 << 20, hint=_HINT)
_GENERATION = Reader(CheckpointError, limit=1 << 20, hint=_HINT)
_LONGEST = 1 << 20  # characters of YAML; most have a thousand
_MOST = 5000  # tags, or sources
_DEEPEST = 100  # YAML inside of YAML

_OF_MODEL = (
    "name", "author", "version", "organization", "description", "finetune", "basename",
    "size_label", "url", "doi", "uuid", "repo_url",
)  # fmt: skip
_TEXTS = frozenset(
    (*_OF_MODEL, *(f"model_{name}" for name in _OF_MODEL), "model_creator", "model_type",
     "license_name", "license_link")
)  # fmt: skip
_LISTS = frozenset(("license", "tags", "pipeline_tag", "languages", "language"))
_SOURCES = frozenset(
    ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources")
)
_OF_SOURCE = frozenset(_OF_MODEL) - {"finetune", "basename", "size_label"}

Card = dict[str, str | list[str] | list[str | dict[str, str]]]
"""Field to text, to several texts, or to several sources: each a name or its fields."""


def read_card(directory: Path) -> Card:
    """The fields of the model card that a GGUF has keys for; none where there is no card.

    Raises:
        CheckpointError: README.md cannot be read, or one of these fields is of no use.
    """
    path = directory / "README.md"
    if not os.path.lexists(path):
        return {}
    text = _front_matter(path, _CARD.text(path))
    card: Card = {}
    for key, value in _fields(path, text).items():
        if value is None:
            continue
        if key in _TEXTS:
            card[key] = _text(path, key, value)
        elif key in _LISTS:
            card[key] = _texts(path, key, value)
        elif key in _SOURCES:
            card[key] = _sources(path, key, value)
    return card


def read_sampling(directory: Path) -> dict[str, Any]:
    """The defaults of generation_config.json, by the names of ``gguf.Metadata``.

    Raises:
        CheckpointError: the file cannot be read, or one of them is of another type.
    """
    path = directory / "generation_config.json"
    if not os.path.lexists(path):
        return {}
    record = _GENERATION.record(path)
    values: dict[str, Any] = {}
    if record.get("sequence") is not None:
        values["sampling_sequence"] = record.text("sequence")
    for key in ("top_k", "penalty_last_n", "mirostat"):
        if record.get(key) is not None:
            values[f"sampling_{key}"] = record.integer(key, -(2**31), 2**31 - 1)
    for key in ("top_p", "min_p", "xtc_probability", "xtc_threshold", "temperature",
                "penalty_repeat", "mirostat_tau", "mirostat_eta"):  # fmt: skip
        if record.get(key) is not None:
            number = record.number(key)
            if abs(number) > 3.4e38:
                raise record.fault(key, "a number that float32 can hold")
            values[f"sampling_{'temp' if key == 'temperature' else key}"] = number
    return values


def _front_matter(path: Path, text: str) -> str:
    """The lines between the first, which is ``---``, and the next such."""
    lines = text.splitlines()
    if not lines or lines[0] != "---":
        return ""
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    # A tab cannot indent in YAML, and does in some cards.
    matter = "\n".join(lines[1:end]).replace("\t", "  ") + "\n"
    if len(matter) > _LONGEST:
        raise CheckpointError(
            f"{path} begins with too much YAML",
            found=f"{len(matter)} characters",
            expected=f"at most {_LONGEST}",
            hint=_HINT,
        )
    return matter


# --- YAML


def _fields(path: Path, text: str) -> dict[str, Any]:
    """The entries of the mapping in YAML text: None, strings, lists and dictionaries of these."""
    import yaml

    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        documents = _values(path, yaml.parse(text, Loader=loader))
    except (yaml.YAMLError, ValueError) as error:  # the latter for a character that there is not
        found = " ".join(str(error).split())[:200]
        raise _bad(path, found, "YAML") from None
    if len(documents) > 1:
        raise _bad(path, f"{len(documents)} YAML documents", "one")
    # A card whose YAML is no mapping has no fields.
    return documents[0] if documents and isinstance(documents[0], dict) else {}


def _values(path: Path, events: Iterator[yaml.Event]) -> list[Any]:
    """The values of all documents."""
    import yaml

    open_values: list[list[Any]] = [[]]
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise _bad(path, f"the alias *{brief(event.anchor)}", "values written out")
        if isinstance(event, yaml.ScalarEvent):
            is_null = event.implicit[0] and event.value in ("", "~", "null", "Null", "NULL")
            open_values[-1].append(None if is_null else event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_values.append([])
            if len(open_values) > _DEEPEST:
                raise _bad(path, "YAML that is nested too deeply", f"at most {_DEEPEST} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            items = open_values.pop()
            is_list = isinstance(event, yaml.SequenceEndEvent)
            open_values[-1].append(items if is_list else _mapping(items))
    return open_values[0]


def _mapping(items: list[Any]) -> dict[str, Any]:
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if isinstance(key, str)}


# --- types


def _bad(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is a model card that cannot be read", found=found, expected=expected, hint=_HINT
    )


def _text(path: Path, key: str, value: object) -> str:
    if not isinstance(value, str):
        kind = "a list" if isinstance(value, list) else "several fields"
        raise _bad(path, f"{key} of {kind}", f"{key} as one text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _bad(path, f"{key} with a lone surrogate", f"{key} in Unicode") from None
    if "\0" in value:
        raise _bad(path, f"{key} with a NUL character", f"{key} as text")
    return value


def _elements(path: Path, key: str, value: object) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if len(values) > _MOST:
        raise _bad(path, f"{len(values)} of {key}", f"at most {_MOST}")
    return [item for item in values if item is not None]


def _texts(path: Path, key: str, value: object) -> list[str]:
    return [_text(path, key, item) for item in _elements(path, key, value)]


def _sources(path: Path, key: str, value: object) -> list[str | dict[str, str]]:
    return [
        _source(path, key, item) if isinstance(item, Mapping) else _text(path, key, item)
        for item in _elements(path, key, value)
    ]


def _source(path: Path, key: str, fields: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: _text(path, f"{key}: {name}", text)
        for name, text in fields.items()
        if name in _OF_SOURCE and text is not None
    }
