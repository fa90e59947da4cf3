"""Adapters: small matrices that change what a model says, added to its own while it answers.

A LoRA adapter adds the product of two small matrices to one of the model, a control vector adds a
direction to what layers give on. Promises scales that are finite, and names that mean one adapter:
a file is one, however its path is written. Reads no files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..ranges import as_path, is_number, outside, value_text, wrong_type
from ..untrusted import brief

Scales = tuple[float, ...]
"""How much of each loaded adapter is added, in their order; 0.0 is nothing."""

MAX_ADAPTERS = 64
"""How many adapters, or control vectors, a model may have."""

_MOST_SCALE = 1e6
_ONE_OF = "a file, a pair of a file and a scale, or an Adapter"


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter's file, and how much of it is added.

    Args:
        path: a GGUF that `llama4 convert-lora` or llama.cpp's converter wrote.
        scale: 1.0 is what it was trained for, 0.0 nothing.

    Raises:
        SettingError: the path is none, or the scale is not a finite number.
    """

    path: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", as_path("an adapter's path", self.path))
        object.__setattr__(self, "scale", _scale("an adapter's scale", self.scale))

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return Path(self.path).name.removesuffix(".gguf")

    @property
    def file(self) -> str:
        """The file's own path, whatever leads to it: relative paths and links are followed."""
        return _file(self.path)


@dataclass(frozen=True)
class ControlVector:
    """A control vector's file, and how much of it is added.

    Args:
        path: a GGUF that llama.cpp's cvector-generator wrote.
        scale: 1.0 is the vector as it is; below 0.0 is its opposite.

    Raises:
        SettingError: the path is none, or the scale is not a finite number.
    """

    path: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", as_path("a control vector's path", self.path))
        object.__setattr__(self, "scale", _scale("a control vector's scale", self.scale))


AdapterInput = str | os.PathLike[str] | tuple[str | os.PathLike[str], float] | Adapter
"""An adapter that a model is to have: a file, or one with a scale."""

ControlVectorInput = str | os.PathLike[str] | tuple[str | os.PathLike[str], float] | ControlVector
"""A control vector that a model is to have: a file, or one with a scale."""

WantedAdapters = (
    Iterable[AdapterInput | int | tuple[int, float]] | Mapping[str, float] | Mapping[int, float]
) | None
"""Which of its model's adapters a request has: see `as_scales`."""


def as_adapters(value: object) -> tuple[Adapter, ...]:
    """The adapters that a model is to have: files, pairs of a file and a scale, or `Adapter`.

    Raises:
        SettingError: something else, a scale that is not finite, a file twice, or too many.
    """
    adapters = tuple(_adapter(one) for one in _listed("adapters", value, _ONE_OF))
    given: dict[str, str] = {}
    for adapter in adapters:
        if adapter.file in given:
            names = dict.fromkeys([given[adapter.file], adapter.path])
            raise SettingError("an adapter is given twice", found=" and ".join(map(brief, names)))
        given[adapter.file] = adapter.path
    return adapters


def as_control_vectors(value: object) -> tuple[ControlVector, ...]:
    """The control vectors that a model is to have, given as adapters are; the sum of them counts.

    Raises:
        SettingError: something else, a scale that is not finite, or too many.
    """
    return tuple(
        one if isinstance(one, ControlVector) else ControlVector(*_pair("control_vectors", one))
        for one in _listed(
            "control_vectors", value, "a file, a pair of a file and a scale, or a ControlVector"
        )
    )


def as_scales(value: object) -> tuple[tuple[str | int, float], ...] | None:
    """Which adapters a request has, and how much of each: names or places, each with a scale.

    Args:
        value: as for `as_adapters`, where an adapter's place, from 0, or its name may stand for its
            file; or a mapping of these to scales. None is what the model has.

    Raises:
        SettingError: something else, a scale that is not finite, or too many.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        value = tuple(value.items())
    return tuple(
        (one.path, one.scale) if isinstance(one, Adapter) else _pair("adapters", one, place=True)
        for one in _listed("adapters", value, f"{_ONE_OF}, or its place")
    )


def as_layers(value: object) -> tuple[int, int] | None:
    """The first and the last layer that control vectors are added after; None is all.

    Raises:
        SettingError: it is no such pair.
    """
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(type(one) is int for one in pair) or not 1 <= pair[0] <= pair[1]:
        expected = "the first and the last of the layers, from 1 up"
        raise outside("control_vector_layers", value, expected)
    return pair


def _listed(name: str, value: object, elements: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes | os.PathLike | Mapping) or not isinstance(value, Iterable):
        raise wrong_type(name, value, f"a list, each {elements}")
    listed = tuple(value)
    if len(listed) > MAX_ADAPTERS:
        raise outside(f"the number of {name}", len(listed), f"at most {MAX_ADAPTERS}")
    return listed


def _adapter(value: object) -> Adapter:
    if isinstance(value, Adapter):
        return value
    path, scale = _pair("adapters", value)
    return Adapter(str(path), scale)


def _pair(name: str, value: object, *, place: bool = False) -> tuple[Any, float]:
    """A file, or a pair of a file and a scale."""
    file, scale = value, 1.0
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise wrong_type(name, value, f"each {_ONE_OF}")
        file, scale = value
    if place and type(file) is int:
        return file, _scale("an adapter's scale", scale)
    if not isinstance(file, str | os.PathLike):
        raise wrong_type(name, value, f"each {_ONE_OF}")
    return as_path(name, file), _scale("an adapter's scale", scale)


def _file(path: str) -> str:
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # no file can have this name
        return path


def _scale(name: str, value: object) -> float:
    if not is_number(value) or not abs(float(value)) <= _MOST_SCALE:  # type: ignore[arg-type]
        raise outside(name, value, f"a number from -{_MOST_SCALE:g} to {_MOST_SCALE:g}")
    return float(value)  # type: ignore[arg-type]


class LoadedAdapters:
    """The adapters of a model, and how much of each holds for a request that does not say.

    Any thread may ask, and change ``scales``.

    Args:
        adapters: in the order in which they were given.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = tuple(adapters)
        self.scales: Scales = tuple(adapter.scale for adapter in adapters)

    @property
    def current(self) -> tuple[Adapter, ...]:
        """Each with the scale that holds now."""
        pairs = zip(self._adapters, self.scales, strict=True)
        return tuple(replace(adapter, scale=scale) for adapter, scale in pairs)

    def of(self, wanted: object) -> Scales:
        """The scales that a request has; those that it does not name have none.

        Args:
            wanted: see `as_scales`; None is ``scales``.

        Raises:
            SettingError: it names one that is not loaded, or one twice; or see `as_scales`.
        """
        named = as_scales(wanted)
        if named is None:
            return self.scales
        scales: dict[int, float] = {}
        for name, scale in named:
            place = self._place(name)
            if place in scales:
                raise SettingError("adapters names one twice", found=value_text(name))
            scales[place] = scale
        return tuple(scales.get(place, 0.0) for place in range(len(self._adapters)))

    def _place(self, name: str | int) -> int:
        if isinstance(name, int):
            places = [name] if 0 <= name < len(self._adapters) else []
        else:
            every = list(enumerate(self._adapters))
            places = (
                [place for place, one in every if one.path == name]
                or [place for place, one in every if one.name == name]
                or [place for place, one in every if one.file == _file(name)]
            )
        if len(places) != 1:
            loaded = ", ".join(f"{at} ({brief(one.name)})" for at, one in enumerate(self._adapters))
            raise SettingError(
                "adapters names several" if places else "adapters names one that is not loaded",
                found=value_text(name),
                expected=f"one of {loaded}" if loaded else "none: the model has no adapters",
                hint="Give adapters to the model when it is opened." if not loaded else None,
            )
        return places[0]
