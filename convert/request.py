"""What a conversion is asked to write: its settings, checked before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import SettingError
from ..quant import Recipe, TensorType, as_recipe, type_overrides
from ..ranges import as_path, as_tuple, check_whole
from .importance import ImportanceMatrix, open_matrix
from .vision import DEFAULT_VISION_TYPE, vision_type_named


@dataclass(frozen=True)
class Request:
    """What a conversion is to write.

    `recipe`, `overrides`, `matrix` and `split_size` are of the text model, `matrices` is the
    projector's type. A `recipe` of None is the one that suits the source. `given` has the settings
    of either that somebody gave, by their names.
    """

    text: bool
    vision: bool
    recipe: Recipe | None
    overrides: Sequence[tuple[str, TensorType]]
    matrix: ImportanceMatrix | None
    split_size: int | None
    matrices: TensorType
    given: Mapping[str, object] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The files that it comes from."""
        paths = [self.recipe and self.recipe.path, self.matrix and self.matrix.path]
        return [path for path in paths if path]


def request_of(
    *,
    text: bool,
    vision: bool,
    recipe: str | os.PathLike[str] | Recipe | None,
    types: Sequence[tuple[str, str]],
    imatrix: str | os.PathLike[str] | None,
    split_size: int | None,
    vision_type: str | None,
) -> Request:
    """The settings as a request; what is of no effect was given by mistake.

    Raises:
        SettingError: one is outside its range, or `text` and `vision` exclude each other, or a
            setting beside them.
        RecipeError: no such recipe or type, or a recipe file that cannot be read.
        ModelFileError: `imatrix` cannot be read.
    """
    check_whole("split_size", split_size, 1, or_none=True)
    types = as_tuple("types", types, "(regex, type) pairs")
    if not text and not vision:
        raise SettingError("nothing is to be converted", found="text=False and vision=False")
    of_text = {
        "recipe": recipe, "types": types or None, "imatrix": imatrix, "split_size": split_size,
    }  # fmt: skip
    given = {
        name: value
        for name, value in {**of_text, "vision_type": vision_type}.items()
        if value is not None
    }
    unused = [name for name in given if not (vision if name == "vision_type" else text)]
    if unused:
        raise SettingError(
            f"{unused[0]} is of no effect",
            found="text=False" if not text else "vision=False",
            hint=f"Leave out one of them: {unused[0]} says how that is stored.",
        )
    return Request(
        text=text,
        vision=vision,
        recipe=None if recipe is None else as_recipe(recipe),
        overrides=type_overrides(types),
        matrix=None if imatrix is None else open_matrix(as_path("imatrix", imatrix)),
        split_size=split_size,
        matrices=vision_type_named(DEFAULT_VISION_TYPE if vision_type is None else vision_type),
        given=given,
    )
