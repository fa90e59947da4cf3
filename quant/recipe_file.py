"""Recipe files: the type of each tensor, written down.

A JSON object. Its `types` are pairs of a pattern and a type, of which the first that means a tensor
decides; what none means gets the `default`. A pattern is the whole name of one tensor, or else a
regular expression that is found in names. The `notes` are free-form, for whoever made the file::

    {
      "version": 1,
      "name": "scout-48gb",
      "summary": "chosen for 48 GB",
      "types": [
        ["blk.0.ffn_down_exps.weight", "q4_k"],
        ["ffn_(gate|up)_exps", "q3_k"]
      ],
      "default": "q8_0",
      "notes": {"budget": 48000000000}
    }

The same recipe is always written in the same bytes. Knows no model: whether the names are of the
one that is converted is seen there.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import factorial, prod
from pathlib import Path
from typing import Any

from ..errors import OutputError, RecipeError, did_you_mean
from ..ranges import as_path, as_tuple, check_text, wrong_type
from ..system.files import disk_hint, is_file, write_atomically
from ..untrusted import Reader, brief, shown
from .mixes import same
from .recipes import RECIPES, Recipe, TypeRule, recipe_named
from .types import TensorType, type_named

VERSION = 1
SUFFIX = ".json"

_HINT = "docs/reference/recipes.md says what a recipe file holds."
_READER = Reader(RecipeError, limit=4 << 20, hint=_HINT)
_FIELDS = ("version", "name", "summary", "types", "default", "notes")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_LONGEST_SUMMARY = 200
_LONGEST_PATTERN = 1000
# Ways in which the regular expressions of somebody else may be tried at a place in a name, each and
# all of them, so that they cannot search for hours.
_MOST_WAYS, _MOST_WAYS_OF_ALL = 1 << 18, 1 << 20
_MOST_PATTERNS = 4096  # Maverick has 700 tensors; each pattern is looked for in every name
_NAME_BITS = 6  # a name has 63 letters at most
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEAT = re.compile(r"[*+]|\{\d*,\d*\}")


def as_recipe(value: str | os.PathLike[str] | Recipe) -> Recipe:
    """The recipe that is meant: by its name, by its file, or itself.

    What is called like a recipe of `RECIPES` is that one; a file of such a name is ``./int4``.

    Raises:
        RecipeError: there is none of that name, or the file is not a recipe file.
    """
    if isinstance(value, Recipe):
        return value
    if isinstance(value, os.PathLike) or (isinstance(value, str) and is_recipe_file(value)):
        return read_recipe(value)
    return recipe_named(value)


def is_recipe_file(text: str) -> bool:
    """Whether a file is meant, rather than a recipe's name."""
    if text.lower() in RECIPES:
        return False
    return text.endswith(SUFFIX) or os.sep in text or is_file(Path(text))


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a file.

    Raises:
        RecipeError: the file cannot be read, or holds something else.
    """
    path = Path(as_path("path", path))
    record = _READER.as_record(
        _READER.parse(_READER.text(path), str(path), pairs=_without_duplicates), str(path)
    )
    for key in record:
        if key not in _FIELDS:
            raise RecipeError(
                f"{path} has an unknown entry",
                found=shown(key),
                expected=f"one of {', '.join(_FIELDS)}",
                hint=did_you_mean(brief(key), _FIELDS),
            )
    version = record.integer("version")
    if version != VERSION:
        raise RecipeError(
            f"{path} is a recipe file of another version",
            found=version,
            expected=VERSION,
            hint="Use the release of llama4-edge that wrote it, or a later one.",
        )
    notes: Mapping[str, Any] = record.record("notes") if record.get("notes") is not None else {}
    return _made(
        record.text("name"),
        record.elements("types"),
        record.text("default"),
        summary=record.text("summary", default=""),
        notes=dict(notes),
        of=f"{path}: ",
        path=path,
    )


def make_recipe(
    name: str,
    types: Sequence[tuple[str, str]],
    default: str,
    *,
    summary: str = "",
    notes: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe that can be written to a file.

    Args:
        name: of letters, digits, dots, dashes and underscores; files are called by it.
        types: (pattern, type name) pairs, of which the first that means a tensor decides: the whole
            name of a tensor means that one, any other regular expression those in whose names it is
            found.
        default: the type's name of all other tensors. Norms and routers stay in F32.
        summary: a line for people.
        notes: whatever else is to be known, in JSON's types.

    Raises:
        RecipeError: there is no such type, a pattern is not a regular expression, or the name is
            taken.
    """
    for key, value in (("name", name), ("default", default), ("summary", summary)):
        check_text(key, value)
    if notes is not None and not isinstance(notes, Mapping):
        raise wrong_type("notes", notes, "None or a mapping")
    pairs = as_tuple("types", types, "(pattern, type name) pairs")
    return _made(name, pairs, default, summary=summary, notes=notes or {})


def write_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write a recipe that `make_recipe` or a file made; an existing recipe file is replaced.

    Raises:
        RecipeError: it is one of `RECIPES`, whose types depend on the model.
        OutputError: the file cannot be written, or exists and is something else.
    """
    if not isinstance(recipe, Recipe):
        raise wrong_type("recipe", recipe, "a Recipe")
    path = as_path("path", path)
    if recipe.text is None:
        raise RecipeError(
            f"recipe {recipe.name} cannot be written to a file",
            expected="one of a list of types, as make_recipe gives it",
            hint=f"Give its name: recipe={recipe.name}",
        )
    check_recipe_target(path)
    try:
        write_atomically(path, recipe.text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        hint = disk_hint(error) if isinstance(error, OSError) else None
        raise OutputError(f"{path} cannot be written", found=reason, hint=hint) from None


def check_recipe_target(path: str | os.PathLike[str]) -> None:
    """Raise where `write_recipe` would: before types are chosen, which takes minutes.

    Raises:
        OutputError: there is no such directory, or something else than a recipe file is there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise OutputError(
            f"{path} cannot be written",
            found="No such file or directory",
            hint="Make the directory first.",
        )
    if not (path.exists() or path.is_symlink()):
        return
    try:
        read_recipe(path)
    except RecipeError:
        raise OutputError(
            f"{path} exists, and is not a recipe file", hint="Give another name, or move it away."
        ) from None


def _made(
    name: str,
    types: Sequence[object],
    default: str,
    *,
    summary: str,
    notes: Mapping[str, Any],
    of: str = "",
    path: Path | None = None,
) -> Recipe:
    """The recipe of these entries; `of` begins its errors."""
    _check_words(name, summary, of)
    if len(types) > _MOST_PATTERNS:
        raise RecipeError(
            f"{of}types have too many patterns",
            found=f"{len(types):,}",
            expected=f"at most {_MOST_PATTERNS:,}",
        )
    rules = tuple(_rule(pair, f"{of}types[{place}]") for place, pair in enumerate(types))
    ways = sum(_ways(_plain(rule.pattern)) for rule in rules if not rule.is_name)
    if ways > _MOST_WAYS_OF_ALL:
        raise RecipeError(
            f"{of}types have too many patterns that must be tried in many ways",
            hint="Write names of tensors, or regular expressions with less of *, +, {}, ? and |.",
        )
    base = _type(default, f"{of}default")
    text = _text(name, summary, rules, base, notes, of)
    return Recipe(name, summary or "a recipe file", None, same(base), rules, text=text, path=path)


def _check_words(name: str, summary: str, of: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise RecipeError(
            f"{of}name cannot be a recipe's",
            found=shown(name),
            expected="up to 64 letters, digits, dots, dashes and underscores",
        )
    if name.lower() in RECIPES:
        raise RecipeError(
            f"{of}name is that of another recipe", found=name, hint="Give it a name of its own."
        )
    if len(summary) > _LONGEST_SUMMARY or not summary.isprintable():
        raise RecipeError(
            f"{of}summary cannot be shown",
            found=shown(summary),
            expected=f"one line of at most {_LONGEST_SUMMARY} letters",
        )


def _rule(pair: object, of: str) -> TypeRule:
    """A pattern with its type.

    Raises:
        RecipeError: it is no such pair, or the pattern might be searched for without end.
    """
    if not (
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and all(isinstance(item, str) for item in pair)
    ):
        raise RecipeError(
            f"{of} is not a pair",
            found=shown(pair),
            expected='a pattern and a type, as in ["ffn_down_exps", "q6_k"]',
        )
    pattern, type_name = pair
    rule = TypeRule(pattern, _type(type_name, of))
    if not rule.is_name:
        _check_regex(pattern, of)
    try:
        rule.compiled()
    except RecipeError as error:
        raise RecipeError(f"{of} is not a regular expression", found=error.found) from None
    return rule


def _check_regex(pattern: str, of: str) -> None:
    """Refuse what takes a regular expression longer than names are long."""
    plain = _plain(pattern)
    refused = None
    if not pattern or len(pattern) > _LONGEST_PATTERN:
        refused = f"1 to {_LONGEST_PATTERN} letters"
    elif "(?" in plain or re.search(r"(?:^|[^\\])(?:\\\\)*\\[1-9]", pattern):
        refused = "no references to groups, and none that look ahead or behind"
    elif _ways(plain) > _MOST_WAYS:
        refused = "less of *, +, {}, ? and |, which must be tried one with the other"
    elif re.search(r"\)(?:[*+]|\{)", plain):
        refused = "*, + and {} behind a single letter or class, not behind a group"
    if refused:
        raise RecipeError(
            f"{of} is not a pattern that a recipe file may have",
            found=shown(pattern),
            expected=refused,
        )


def _plain(pattern: str) -> str:
    """A regular expression with a letter for each escape and each class, and one kind of group."""
    return _ESCAPE_OR_CLASS.sub("x", pattern).replace("(?:", "(")


def _ways(plain: str) -> int:
    """In how many ways a regular expression, made plain, may be tried at one place in a name."""
    repeats, optional = len(_REPEAT.findall(plain)), plain.count("?")
    ways, open_groups = 1, [1]
    for letter in plain:
        if letter == "(":
            open_groups.append(1)
        elif letter == "|":
            open_groups[-1] += 1
        elif letter == ")" and len(open_groups) > 1:
            ways *= open_groups.pop()
    ways *= prod(open_groups)
    return (ways << _NAME_BITS * repeats + optional) // factorial(repeats)


def _type(name: str, of: str) -> TensorType:
    try:
        return type_named(name)
    except RecipeError as error:
        raise RecipeError(
            f"{of} has an unknown tensor type",
            found=shown(name),
            expected=error.expected,
            hint=error.hint,
        ) from None


def _text(
    name: str,
    summary: str,
    rules: Sequence[TypeRule],
    default: TensorType,
    notes: Mapping[str, Any],
    of: str,
) -> str:
    """The file that holds all this: the same for the same."""
    try:
        said = json.dumps(notes, ensure_ascii=False, allow_nan=False, sort_keys=True)
        said.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{of}notes cannot be written as JSON", found=brief(error), hint=_HINT
        ) from None
    pairs = ",\n".join(
        f"    {json.dumps([rule.pattern, rule.type.name.lower()], ensure_ascii=False)}"
        for rule in rules
    )
    fields = [
        f'"version": {VERSION}',
        f'"name": {json.dumps(name)}',
        f'"summary": {json.dumps(summary, ensure_ascii=False)}',
        f'"types": [\n{pairs}\n  ]' if rules else '"types": []',
        f'"default": {json.dumps(default.name.lower())}',
        f'"notes": {said}',
    ]
    return "{\n  " + ",\n  ".join(fields) + "\n}\n"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's entries, each of which is there once.

    Raises:
        ValueError: one is there twice.
    """
    entries = dict(pairs)
    if len(entries) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"two entries {brief(twice)!r}")
    return entries
