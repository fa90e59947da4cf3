"""Python functions as tools: described by their signature and docstring, and called with JSON.

Promises that a function is described exactly or refused by the name of the parameter that cannot
be, and that it is called with values of the types that it is annotated with: an Enum's member, a
dataclass, a pydantic model. What the model wrote is never evaluated. Knows no model.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import inspect
import json
import pathlib
import re
import types
import typing
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import SettingError
from ..untrusted import shown
from .arguments import problem_with
from .docstrings import docstring_parts

Convert = Callable[[Any], Any]
"""Makes of a value of JSON what a parameter is annotated with."""

_PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_MAX_DEPTH = 20  # of annotations in annotations


@dataclass(frozen=True)
class Function:
    """A Python function that a model may call.

    Args:
        call: the function.
        definition: what the model is told of it, as OpenAI defines a tool.
        converters: makes what each parameter takes.
        positional: the parameters that have no name for the caller, in order.
    """

    call: Callable[..., Any]
    definition: Mapping[str, Any]
    converters: Mapping[str, Convert]
    positional: tuple[str, ...] = ()

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Function:
        """The function described.

        Raises:
            SettingError: it has no name or signature, or a parameter that cannot be described.
        """
        name = getattr(function, "__name__", None)
        if not isinstance(name, str) or name == "<lambda>":
            raise SettingError(
                "a tool has no name that can be called",
                found=shown(function),
                expected="a function that was defined with def",
            )
        try:
            signature = inspect.signature(function)
            hints = typing.get_type_hints(_annotated(function), include_extras=True)
        except (TypeError, ValueError, NameError, AttributeError, SyntaxError) as error:
            raise SettingError(
                f"the signature of {name} cannot be read", found=str(error)[:200]
            ) from error
        description, texts = docstring_parts(inspect.getdoc(function) or "")
        properties: dict[str, Any] = {}
        converters: dict[str, Convert] = {}
        required, positional = [], []
        for parameter in signature.parameters.values():
            where = f"parameter {parameter.name} of {name}"
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise _refused(where, str(parameter), "parameters with a name each")
            if parameter.name not in hints:
                raise _refused(where, "no annotation", f"{parameter.name}: str, for example")
            schema, convert = describe(hints[parameter.name], where)
            if parameter.default is None and problem_with(None, schema) is not None:
                schema, convert = describe(
                    typing.Optional[hints[parameter.name]],  # noqa: UP045
                    where,
                )
            if parameter.name in texts:
                schema = {**schema, "description": texts[parameter.name]}
            if parameter.default is parameter.empty:
                required.append(parameter.name)
            elif (default := _as_json(parameter.default)) is not None:
                schema = {**schema, "default": default[0]}
            properties[parameter.name], converters[parameter.name] = schema, convert
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(parameter.name)
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if required:
            parameters["required"] = required
        inner: dict[str, Any] = {"name": name, "parameters": parameters}
        if description:
            inner = {"name": name, "description": description, "parameters": parameters}
        definition = {"type": "function", "function": inner}
        return cls(function, definition, converters, tuple(positional))

    @property
    def is_async(self) -> bool:
        """Whether calling it gives something to await."""
        called = getattr(self.call, "__call__", None)  # noqa: B004 (of an object with __call__)
        return inspect.iscoroutinefunction(self.call) or inspect.iscoroutinefunction(called)

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        """What it returns, called with arguments that are as its schema says.

        Raises:
            ValueError: an argument is not what the function takes; or whatever it raises.
        """
        values = {name: self.converters[name](value) for name, value in arguments.items()}
        first = []
        for name in self.positional:
            if name not in values:
                break
            first.append(values.pop(name))
        return self.call(*first, **values)


def describe(annotation: Any, where: str, depth: int = 0) -> tuple[dict[str, Any], Convert]:
    """The JSON Schema of an annotation, and what makes such a value of one of JSON.

    Raises:
        SettingError: it cannot be described; names ``where`` it stands.
    """
    if depth > _MAX_DEPTH:
        raise _refused(where, "types in types without end", f"at most {_MAX_DEPTH} levels")
    kind = next((name for known, name in _PLAIN.items() if annotation is known), None)
    if kind is not None:
        return {"type": kind}, annotation if annotation in (int, float) else _same
    if annotation is None or annotation is type(None):
        return {"type": "null"}, _same
    if annotation is Any or annotation is object:
        return {}, _same
    if annotation in _TEXTS:
        schema, make = _TEXTS[annotation]
        return dict(schema), make
    if isinstance(annotation, typing.NewType):
        return describe(annotation.__supertype__, where, depth + 1)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        schema, convert = describe(arguments[0], where, depth + 1)
        text = next(filter(None, map(_annotation_text, arguments[1:])), None)
        return ({**schema, "description": text} if text else schema), convert
    if origin is Literal:
        values = [one.value if isinstance(one, enum.Enum) else one for one in arguments]
        return _choice(values, list(arguments), where)
    if origin in (Union, types.UnionType):
        return _union(arguments, where, depth)
    if annotation in (list, dict, tuple, set, frozenset):
        origin = annotation
    if origin in (list, Sequence, Iterable, Collection, set, frozenset) or (
        isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple
    ):
        return _array(origin, arguments, where, depth)
    if origin is tuple:
        return _tuple(arguments, where, depth)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(arguments, where, depth)
    if isinstance(annotation, type):
        return _of_class(annotation, where, depth)
    raise _refused(where, _type_name(annotation), _CAN_BE)


def _choice(values: list[Any], meant: list[Any], where: str) -> tuple[dict[str, Any], Convert]:
    """One of some values of JSON, each of which means something."""
    if not values or any(_as_json(value) is None for value in values):
        raise _refused(where, f"the choices {values!r}"[:200], "strings, numbers, booleans, None")
    kinds = {type(value) for value in values}
    schema: dict[str, Any] = {"enum": values}
    if len(kinds) == 1 and (kind := _PLAIN.get(kinds.pop())):
        schema = {"type": kind, "enum": values}
    pairs = list(zip(values, meant, strict=True))

    def convert(value: Any) -> Any:
        for one, other in pairs:
            # 1 == True in Python, and not in JSON.
            if one == value and isinstance(one, bool) == isinstance(value, bool):
                return other
        raise ValueError(f"{shown(value)} is none of {', '.join(map(repr, values))}"[:300])

    return schema, convert


def _union(arguments: tuple[Any, ...], where: str, depth: int) -> tuple[dict[str, Any], Convert]:
    members = [describe(one, where, depth + 1) for one in arguments]
    kinds = [schema.get("type") if set(schema) == {"type"} else None for schema, _ in members]
    schema: dict[str, Any] = {"anyOf": [schema for schema, _ in members]}
    if all(isinstance(kind, str) for kind in kinds):
        schema = {"type": kinds}

    def convert(value: Any) -> Any:
        for member, make in members:
            if problem_with(value, member) is None:
                return make(value)
        raise ValueError(f"{shown(value)} is of none of the types of {where}")

    return schema, convert


def _array(
    origin: Any, arguments: tuple[Any, ...], where: str, depth: int
) -> tuple[dict[str, Any], Convert]:
    items, convert = describe(arguments[0] if arguments else Any, where, depth + 1)
    schema: dict[str, Any] = {"type": "array"}
    if items:
        schema["items"] = items
    make = origin if origin in (set, frozenset) else list
    return schema, lambda value: make(map(convert, value))


def _tuple(arguments: tuple[Any, ...], where: str, depth: int) -> tuple[dict[str, Any], Convert]:
    if not arguments or arguments[-1] is Ellipsis:
        schema, convert = _array(list, arguments[:1], where, depth)
        return schema, lambda value: tuple(convert(value))
    members = [describe(one, where, depth + 1) for one in arguments]
    n = len(members)
    schema = {
        "type": "array",
        "prefixItems": [schema for schema, _ in members],
        "minItems": n,
        "maxItems": n,
    }
    return schema, lambda value: tuple(
        make(one) for (_, make), one in zip(members, value, strict=True)
    )


def _mapping(arguments: tuple[Any, ...], where: str, depth: int) -> tuple[dict[str, Any], Convert]:
    key, value = arguments if len(arguments) == 2 else (str, Any)
    if key is not str:
        raise _refused(where, f"keys of type {_type_name(key)}", "dict[str, ...]")
    values, convert = describe(value, where, depth + 1)
    schema: dict[str, Any] = {"type": "object"}
    if values:
        schema["additionalProperties"] = values
    return schema, lambda given: {name: convert(one) for name, one in given.items()}


def _of_class(kind: type, where: str, depth: int) -> tuple[dict[str, Any], Convert]:
    if issubclass(kind, enum.Enum):
        members = list(kind)
        return _choice([member.value for member in members], members, where)
    if hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate"):
        return _of_pydantic(kind, where)
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        needed = [name for name in hints if name in kind.__required_keys__]  # type: ignore[attr-defined]
        return _record(
            {name: _bare(hint) for name, hint in hints.items()}, needed, dict, where, depth
        )
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = [one for one in dataclasses.fields(kind) if one.init]
        missing = dataclasses.MISSING
        needed = [
            one.name for one in fields if one.default is missing and one.default_factory is missing
        ]
        return _record({one.name: hints[one.name] for one in fields}, needed, kind, where, depth)
    raise _refused(where, _type_name(kind), _CAN_BE)


def _record(
    hints: Mapping[str, Any],
    needed: list[str],
    make: Callable[..., Any],
    where: str,
    depth: int,
) -> tuple[dict[str, Any], Convert]:
    """An object with these entries and no others."""
    members = {
        name: describe(hint, f"{where}, in {name}", depth + 1) for name, hint in hints.items()
    }
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: one for name, (one, _) in members.items()},
        "additionalProperties": False,
    }
    if needed:
        schema["required"] = needed
    return schema, lambda given: make(
        **{name: members[name][1](value) for name, value in given.items()}
    )


def _of_pydantic(kind: Any, where: str) -> tuple[dict[str, Any], Convert]:
    try:
        schema = kind.model_json_schema()
    except Exception as error:  # pydantic's own, which this file does not know
        raise _refused(where, f"{kind.__name__}: {error}"[:200], _CAN_BE) from error
    return _inlined(schema, schema.pop("$defs", {}), where), kind.model_validate


def _inlined(schema: Any, definitions: Mapping[str, Any], where: str, depth: int = 0) -> Any:
    """A schema with what it refers to in place of the references, which stand for its root."""
    if depth > 5 * _MAX_DEPTH:
        raise _refused(where, "a model that contains itself", "one that ends")
    if isinstance(schema, list):
        return [_inlined(one, definitions, where, depth + 1) for one in schema]
    if not isinstance(schema, dict):
        return schema
    name = schema.get("$ref", "")
    if isinstance(name, str) and name.startswith("#/$defs/"):
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**definitions[name.removeprefix("#/$defs/")], **rest}
    return {key: _inlined(value, definitions, where, depth + 1) for key, value in schema.items()}


def _bare(hint: Any) -> Any:
    """A TypedDict's annotation without Required and NotRequired."""
    # By name: they are in `typing` or in `typing_extensions`, by the release of Python.
    while getattr(get_origin(hint), "_name", None) in ("NotRequired", "Required", "ReadOnly"):
        hint = get_args(hint)[0]
    return hint


def _annotated(function: Callable[..., Any]) -> Any:
    """What has the annotations: of an object that can be called, its method."""
    function = inspect.unwrap(function)
    if inspect.isfunction(function) or inspect.ismethod(function):
        return function
    return type(function).__call__


def _annotation_text(annotation: object) -> str | None:
    """What an annotation says of a parameter: a string, or pydantic's Field, or a Doc."""
    texts = (getattr(annotation, name, None) for name in ("description", "documentation"))
    return next((one for one in (annotation, *texts) if isinstance(one, str)), None)


def _moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))


# Types that JSON has as texts.
_TEXTS: dict[Any, tuple[dict[str, Any], Convert]] = {
    datetime.date: ({"type": "string", "format": "date"}, datetime.date.fromisoformat),
    datetime.datetime: ({"type": "string", "format": "date-time"}, _moment),
    uuid.UUID: ({"type": "string", "format": "uuid"}, uuid.UUID),
    pathlib.Path: ({"type": "string"}, pathlib.Path),
}


def _as_json(value: Any) -> tuple[Any] | None:
    """A value as JSON has it, in a tuple, since it may be None; None where JSON has no such."""
    if isinstance(value, enum.Enum):
        value = value.value
    try:
        return (json.loads(json.dumps(value, allow_nan=False)),)
    except (TypeError, ValueError, RecursionError):
        return None


def _same(value: Any) -> Any:
    return value


_CAN_BE = (
    "str, int, float, bool, None, list, dict, tuple, set, date, datetime, UUID, Path, Literal, an "
    "Enum, a union of these, a TypedDict, a dataclass, or a pydantic model"
)


def _type_name(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation)


def _refused(where: str, found: str, expected: str) -> SettingError:
    return SettingError(f"{where} cannot be described to a model", found=found, expected=expected)
