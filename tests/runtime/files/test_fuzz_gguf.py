"""No GGUF at all is a traceback, and none that is accepted makes llama.cpp abort."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge import inspect
from llama4_edge.errors import ModelFileError
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.files.model_file import _KEY_TYPES, check_model_file
from llama4_edge.runtime.files.projector_file import _ABSENT_OR, _UNWANTED, check_projector_file
from llama4_edge.runtime.files.projector_file import _KEY_TYPES as PROJECTOR_KEY_TYPES
from llama4_edge.runtime.files.vocabulary_file import _ID_KEYS, _TYPES
from tests.fuzzing import damaged_bytes, efforts, fuzz
from tests.gguf_maker import (
    EMBD,
    EXPERTS,
    FF,
    LAYERS,
    N_VOCAB,
    TinyModel,
    Value,
    tiny_model,
    tiny_projector,
)

_FORMATS = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")
_STRING, _ARRAY = 8, 9
# The longest file that is made; what is longer is not written to its end.
_MOST_BYTES = 32 * 2**20


# --- a file as a tree: its keys' types and values, and its tensors


@dataclass(frozen=True)
class Typed:
    """A value with its type in the file; `element` is set for an array."""

    type: int
    value: Any
    element: int | None = None

    def packed(self) -> bytes:
        kind = struct.pack("<I", self.type)
        if self.element is None:
            return kind + _packed(self.type, self.value)
        items = b"".join(_packed(self.element, item) for item in self.value)
        return kind + struct.pack("<IQ", self.element, len(self.value)) + items


def _packed(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        data = value if isinstance(value, bytes) else str(value).encode()
        return struct.pack("<Q", len(data)) + data
    code = _FORMATS[kind]
    if code is None:
        return bytes(12)  # an empty array in an array
    if code in "fd":
        return struct.pack(f"<{code}", value)
    size = struct.calcsize(code)
    return (int(value) % (1 << 8 * size)).to_bytes(size, "little")


def _typed(value: Value) -> Typed:
    if value.element is None:
        return Typed(int(value.type), value.value)
    return Typed(_ARRAY, value.value, int(value.element))


_Tensor = tuple[str, tuple[int, ...], int]


@dataclass
class Tree:
    """Keys with values, and tensors by name, shape and ggml's number of the type."""

    keys: list[tuple[str, Typed]]
    tensors: list[_Tensor]

    def write(self, path: Path) -> Path:
        alignment = 32
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        for key, value in self.keys:
            head += _packed(_STRING, key) + value.packed()
            if key == "general.alignment" and isinstance(value.value, int):
                alignment = min(max(value.value, 1), 2**16)
        offset = 0
        for name, shape, kind in self.tensors:
            head += _packed(_STRING, name)
            head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind % 2**32, offset)
            offset += _nbytes(shape, kind)
            offset += -offset % alignment
        head += bytes(-len(head) % alignment)
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + min(offset, _MOST_BYTES))
        return path


def _nbytes(shape: tuple[int, ...], kind: int) -> int:
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except ValueError:
        return 0
    count = 1
    for length in shape:
        count *= length
    return min(count // int(block) * int(size), 2**40)


def _tree(model: TinyModel) -> Tree:
    keys = [(key, _typed(value)) for key, value in model.keys.items()]
    tensors = [(name, data.shape[::-1], 0) for name, data in model.tensors.items()]
    return Tree(keys, tensors)


# --- what may be wrong with it

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 128, 255, 8192, 2**16, 2**31, 2**32 - 1, 2**64 - 1)
_WORDS = (
    "",
    "x",
    "gpt2",
    "llama4",
    "yarn",
    "none",
    "clip",
    b"\xff\xfe",
    b"a\0b",
    "\x1b[2J",
    "a" * 5000,
)
_LENGTHS = (0, 1, 3, LAYERS, EXPERTS, N_VOCAB)
_FLOATS = (0.0, -1.0, 1e-5, 1.0, 1e38, float("inf"), float("nan"))
_NAMES = (
    *_KEY_TYPES,
    *PROJECTOR_KEY_TYPES,
    *_ABSENT_OR,
    *_UNWANTED,
    *(f"tokenizer.ggml.{name}" for name in (*_TYPES, *_ID_KEYS)),
    *("general.alignment", "llama4.vocab_size", "x", "general.type", "\x1b]0;x"),
)


def _element(kind: int) -> st.SearchStrategy[Any]:
    if kind == _STRING:
        return st.sampled_from(_WORDS)
    if kind in (6, 12):
        return st.sampled_from(_FLOATS)
    return st.sampled_from(_NUMBERS) | st.integers(0, 300)


@st.composite
def values(draw: st.DrawFn) -> Typed:
    """A value of any type, where another may be wanted."""
    kind = draw(st.sampled_from([*range(13), 4, 4, 5, 6, 7, 8]))
    if kind != _ARRAY:
        return Typed(kind, draw(_element(kind)))
    element = draw(st.sampled_from(range(13)))
    length = draw(st.sampled_from(_LENGTHS))
    # One value again and again, or two: that decides as much as many would.
    pair = draw(st.lists(_element(element), min_size=1, max_size=2))
    return Typed(kind, (pair * length)[:length], element)


_MODELS = tuple(_tree(tiny_model(moe_step=step)) for step in (1, 2))
_PROJECTORS = (_tree(tiny_projector()),)


@st.composite
def trees(draw: st.DrawFn, sounds: tuple[Tree, ...]) -> Tree:
    """A sound file in which a few keys, values, tokens or tensors are others."""
    sound = draw(st.sampled_from(sounds))
    tree = Tree(list(sound.keys), list(sound.tensors))
    for _ in range(draw(st.integers(1, 3))):
        what = draw(
            st.sampled_from(["value", "value", "near", "near", "add", "drop", "in", "tensor"])
        )
        at = draw(st.integers(0, len(tree.keys) - 1))
        key, old = tree.keys[at]
        if what == "value":
            tree.keys[at] = (key, draw(values()))
        elif what == "near" and old.element is None:
            tree.keys[at] = (key, Typed(old.type, draw(_element(old.type))))
        elif what == "add":
            tree.keys.append((draw(st.sampled_from(_NAMES)), draw(values())))
        elif what == "drop" and len(tree.keys) > 1:
            del tree.keys[at]
        elif what == "in" and old.element is not None and old.value:
            items = list(old.value)
            items[draw(st.integers(0, len(items) - 1))] = draw(_element(old.element))
            tree.keys[at] = (key, Typed(old.type, items, old.element))
        elif what == "tensor" and tree.tensors:
            _change_tensor(draw, tree)
    return tree


def _change_tensor(draw: st.DrawFn, tree: Tree) -> None:
    at = draw(st.integers(0, len(tree.tensors) - 1))
    name, shape, kind = tree.tensors[at]
    what = draw(st.sampled_from(["shape", "type", "type", "name", "drop", "twice"]))
    if what == "drop":
        del tree.tensors[at]
    elif what == "twice":
        tree.tensors.append(tree.tensors[at])
    elif what == "name":
        other = draw(
            st.sampled_from([*(one[0] for one in tree.tensors), "x", "", "a" * 64, "a\0b"])
        )
        tree.tensors[at] = (other, shape, kind)
    elif what == "type":
        tree.tensors[at] = (name, shape, draw(st.integers(-1, 45)))
    else:
        sizes = st.sampled_from([*_NUMBERS[:14], FF, N_VOCAB, 2**31, 2**62, 2**63])
        tree.tensors[at] = (name, tuple(draw(st.lists(sizes, max_size=5))), kind)


# --- the tests


def _accepted(read: Callable[[Path], object], path: Path) -> bool:
    """Whether a file is read; it is refused in no other way than with our error."""
    try:
        read(path)
    except ModelFileError as error:
        assert len(str(error)) < 3000
        return False
    return True


def _read(path: Path) -> bool:
    """Whether a file is accepted by who opens a model; everybody else reads it too."""
    _accepted(read_gguf, path)
    _accepted(lambda path: inspect(path).as_dict(), path)
    _accepted(lambda path: inspect(path, check=True), path)
    return _accepted(check_model_file, path)


@efforts
def test_no_bytes_are_a_traceback(effort: settings, tmp_path: Path) -> None:
    sound = tiny_model().write(tmp_path / "sound.gguf")
    header = sound.read_bytes()[: read_gguf(sound).data_offset]
    size = sound.stat().st_size - len(header)
    path = tmp_path / "damaged.gguf"

    def check(data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.truncate(len(data) + size)
        _read(path)

    fuzz(check, damaged_bytes(header), effort)


@efforts
def test_no_metadata_are_a_traceback_and_none_accepted_an_abort(
    effort: settings, tmp_path: Path
) -> None:
    accepted: list[Path] = []

    def check(tree: Tree) -> None:
        path = tree.write(tmp_path / f"{len(accepted)}.gguf")
        if _read(path) and len(accepted) < effort.max_examples // 5:
            accepted.append(path)

    fuzz(check, trees(_MODELS), effort)
    assert len(accepted) > effort.max_examples // 20
    _load(accepted, tmp_path / "list")


@efforts
def test_no_projector_is_a_traceback_and_none_accepted_an_abort(
    effort: settings, tmp_path: Path
) -> None:
    accepted: list[Path] = []

    def check(tree: Tree) -> None:
        path = tree.write(tmp_path / f"{len(accepted)}.gguf")
        _read(path)
        if (
            _accepted(lambda path: check_projector_file(path, n_embd=EMBD), path)
            and path.stat().st_size < _MOST_BYTES
            and len(accepted) < effort.max_examples // 5
        ):
            accepted.append(path)

    fuzz(check, trees(_PROJECTORS), effort)
    assert len(accepted) > effort.max_examples // 20
    _load(accepted, tmp_path / "list", "load_projectors")


def _load(paths: list[Path], listed: Path, program: str = "load_files") -> None:
    """Have llama.cpp load files and compute with them, in one child process."""
    listed.write_text("".join(f"{path}\n" for path in paths))
    done = subprocess.run(
        [sys.executable, "-m", f"tests.runtime.files.{program}", listed],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    assert len(lines) == len(paths)
    assert not [line for line in lines if not line.endswith(" loaded")]
