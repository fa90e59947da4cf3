"""From the words of a command line to values: sizes, contexts, lists, overrides, names.

Promises that a word which is no such value is a usage error that shows one which is. Does not know
which option it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import click

from ..errors import did_you_mean

T = TypeVar("T")

# What llama.cpp's int32_t can hold.
LARGEST = 2**31 - 1

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B)?", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})")
_TOKENS = re.compile(r"(\d+)\s*([KM]?)", re.IGNORECASE)


def image_size(word: str) -> tuple[int, int]:
    """``1920x1080``: columns and rows of pixels."""
    match = re.fullmatch(r"(\d{1,7})x(\d{1,7})", word.strip(), re.IGNORECASE)
    if match is None or "0" in (match[1], match[2]):
        raise click.BadParameter(f"{word!r} is not a size in pixels such as 1920x1080")
    return int(match[1]), int(match[2])


class FilePath(click.Path):
    """The name of a file or a directory, which shells complete; an empty one is a mistake."""

    def __init__(self, path_type: type[Path] | type[str] = Path) -> None:
        super().__init__(path_type=path_type)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


def whole_number(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """The type of a whole number from `least` to `most`."""

    def number(word: str) -> int:
        try:
            value = int(word)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            end = "up" if most >= LARGEST else f"to {most}"
            raise click.BadParameter(f"{word!r} is not a whole number from {least} {end}")
        return value

    return number


def unless_minus_one(word: str) -> int | None:
    """A whole number; llama.cpp's -1 stands for what happens without the option."""
    number = whole_number(-1, 2**63)(word)
    return None if number == -1 else number


def logit_bias(word: str) -> tuple[int, float]:
    """llama.cpp's ``15043+1``, ``15043-0.5`` or ``15043-inf``: a token id and a bias."""
    match = re.fullmatch(r"(\d{1,10})([+-](?:\d+(?:\.\d*)?|\.\d+|inf))", word)
    if match is None:
        raise click.BadParameter(f"{word!r} is not a token id and a bias, such as 15043-1")
    return int(match[1]), float(match[2])


def tokens(word: str) -> int | Literal["max"]:
    """``32768``, ``128k`` or ``10M`` tokens; ``max``, or llama.cpp's 0, is what fits."""
    if word in ("max", "0"):
        return "max"
    match = _TOKENS.fullmatch(word.strip())
    count = 0 if match is None else int(match[1]) * int(1024 ** _UNITS[match[2].upper()])
    if count == 0:
        raise click.BadParameter(f"{word!r} is not max, or tokens such as 32768 or 128k")
    if count > LARGEST:
        raise click.BadParameter(f"{word!r} is more than llama.cpp can count")
    return count


def scaled_file(word: str) -> tuple[str, float]:
    """``FILE``, or ``FILE=SCALE`` as in ``poems.gguf=0.5``."""
    name, assigned, scale = word.rpartition("=")
    is_name = "." in scale and not _NUMBER.fullmatch(scale)
    if not assigned or is_name or "/" in scale:
        name, scale = word, "1"
    if not name or not _NUMBER.fullmatch(scale):
        raise click.BadParameter(f"{word!r} is not a file, or FILE=SCALE such as poems.gguf=0.5")
    return name, float(scale)


def layers(word: str) -> int:
    """A number of layers; ``all`` is -1."""
    return -1 if word == "all" else whole_number(-1)(word)


def layers_or_auto(word: str) -> int | None:
    """A number of layers; ``auto`` as if the option was not given."""
    return None if word == "auto" else layers(word)


def memory(word: str) -> int:
    """``24G``, ``24GiB`` or ``1.5T``: memory comes in powers of two."""
    match = _SIZE.fullmatch(word.strip())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{word!r} is not a size of memory, such as 24G")
    return int(float(match[1]) * 1024 ** _UNITS[match[2].upper()])


def mebibytes(word: str) -> int:
    """Bytes, from a number of MiB; llama.cpp's -1 is more than any machine has."""
    number = whole_number(-1, 2**40)(word)
    return 2**62 if number == -1 else number << 20


def file_size(word: str) -> int:
    """A number of bytes as gguf-split takes it: ``500M`` or ``40G``, in powers of ten."""
    units = {"M": 10**6, "G": 10**9}
    digits, unit = word[:-1], word[-1:].upper()
    if unit not in units or not digits.isdecimal() or int(digits) == 0:
        raise click.BadParameter(f"{word!r} is not a number with M or G, such as 40G")
    return int(digits) * units[unit]


def words(value: str) -> tuple[str, ...]:
    """Words with commas between them."""
    return tuple(value.split(","))


def several(kind: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """The type of several values of a type, with commas between them."""
    return lambda value: tuple(kind(word) for word in value.split(","))


def pair(value: str) -> tuple[int, int]:
    """Two whole numbers, as in ``512,128``."""
    numbers = [whole_number(0)(word) for word in value.split(",")]
    if len(numbers) != 2:
        raise click.BadParameter(f"{value!r} is not two numbers, as in 512,128")
    return numbers[0], numbers[1]


def devices(value: str) -> tuple[str, ...]:
    """Names with commas between them; llama.cpp's word for the CPU alone is "none"."""
    return () if value == "none" else words(value)


def shares(value: str) -> tuple[float, ...]:
    """Numbers with commas, or slashes, between them, as llama.cpp takes them."""
    try:
        return tuple(float(word) for word in value.replace("/", ",").split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, as in 3,1") from None


def stop_string(value: str) -> str:
    """A text that ends an answer."""
    if not value:
        raise click.BadParameter("the empty text would end every answer at once")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise click.BadParameter("it is not UTF-8, and no answer could hold it")
    return value


def kv_type(word: str) -> str:
    """A type of the KV cache."""
    from ..runtime.settings import KVType

    return _one_of(word, get_args(KVType))


def load_mode(word: str) -> str:
    """llama.cpp's word for how a file is loaded."""
    from ..runtime.settings import LoadMode

    return _one_of(word, get_args(LoadMode))


def when_full(word: str) -> str:
    """What happens at the end of the context."""
    from ..chat.options import WhenFull

    return _one_of(word, get_args(WhenFull))


def switch(word: str) -> str:
    """on, off or auto."""
    return _one_of(word, ("on", "off", "auto"))


def recipe_name(word: str) -> str:
    """The name of a recipe, or of a recipe file."""
    from ..quant.recipe_file import is_recipe_file
    from ..quant.recipes import RECIPES

    if is_recipe_file(word):
        return word
    return _one_of(word.lower(), tuple(RECIPES), other=", nor a recipe file")


def _one_of(word: str, choices: Sequence[str], other: str = "") -> str:
    if word not in choices:
        hint = did_you_mean(word, choices)
        text = f"{word!r} is not one of {', '.join(choices)}{other}"
        raise click.BadParameter(f"{text}. {hint}" if hint else text)
    return word


def type_overrides(value: str) -> tuple[tuple[str, str], ...]:
    """``REGEX=TYPE``, or several with commas between them."""
    return _assignments(value, "REGEX=TYPE", "'ffn_down_exps=q6_k'")


def tensor_overrides(value: str) -> tuple[tuple[str, str], ...]:
    """``REGEX=DEVICE``, or several with commas between them, as llama.cpp takes them apart."""
    return _assignments(value, "REGEX=DEVICE", "'ffn_.*_exps=CPU'")


def _assignments(value: str, form: str, example: str) -> tuple[tuple[str, str], ...]:
    """``NAME=VALUE`` pairs. A comma inside a pattern's braces, ``{1,2}``, is the pattern's."""
    pairs = []
    for part in re.split(r",(?![^{]*\})", value):
        pattern, _, target = part.rpartition("=")  # a pattern may hold "=", a name never does
        if not (pattern and target):
            raise click.BadParameter(f"{part!r} is not {form}, as in {example}")
        pairs.append((pattern, target))
    return tuple(pairs)


def flattened(lists: Iterable[tuple[tuple[str, str], ...]]) -> tuple[tuple[str, str], ...]:
    """The pairs of an option that takes several each time, and may be given several times."""
    return tuple(pair for pairs in lists for pair in pairs)
