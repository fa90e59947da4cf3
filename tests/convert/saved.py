"""A checkpoint's tensors by name, written again in other forms, and compared when converted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demo.checkpoint import MAVERICK_LIKE, Geometry
from llama4_edge import convert
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.checkpoint import INDEX_NAME
from llama4_edge.convert.converter import inspect_checkpoint

from .conftest import SMALL_WITH_TOWER, edit_json, read_header, shards_of, write_shard

ONE_FILE = replace(SMALL_WITH_TOWER, shards=1)
TEXT = replace(ONE_FILE, vision=None, text_only=True, config_form="rope_parameters")
TIED = replace(ONE_FILE, tied=True)
DENSE_TOO = replace(
    MAVERICK_LIKE, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=64, dense_ffn=64,
    shards=1,
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One tensor as a safetensors file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def words(self) -> npt.NDArray[np.uint16]:
        """Its bf16 numbers as they are stored."""
        return np.frombuffer(self.data, "<u2").reshape(self.shape)


Tensors = dict[str, Stored]
Renaming = Callable[[str], str]


def bf16(words: npt.NDArray[np.uint16]) -> Stored:
    return Stored("BF16", words.shape, np.ascontiguousarray(words).tobytes())


def read_all(checkpoint: Path) -> Tensors:
    tensors = {}
    for shard in shards_of(checkpoint):
        header, data = read_header(shard)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = Stored(entry["dtype"], tuple(entry["shape"]), data[begin:end])
    return tensors


def write_all(file: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, stored in tensors.items():
        offsets = [end, end + len(stored.data)]
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
        end = offsets[1]
    write_shard(file, header, b"".join(stored.data for stored in tensors.values()))


class Forms:
    """Makes other forms of a checkpoint, and compares what becomes of them."""

    def __init__(self, plain: Path, directory: Path) -> None:
        self.plain = plain
        # A GGUF is named after its source's directory.
        self.other = directory / "other" / plain.name
        shutil.copytree(plain, self.other)
        self.tensors = read_all(plain)
        self.directory = directory

    def write(self, tensors: Tensors, name: str = "model.safetensors") -> None:
        """Replace the other's weights."""
        for shard in shards_of(self.other):
            shard.unlink()
        (self.other / INDEX_NAME).unlink(missing_ok=True)
        write_all(self.other / name, tensors)

    def rename(self, renamed: Renaming) -> None:
        self.write({renamed(name): stored for name, stored in self.tensors.items()})

    def set_config(self, **changes: Any) -> None:
        edit_json(self.other / "config.json", lambda config: config.update(changes))

    def notes_of_the_same_file(self) -> tuple[str, ...]:
        """Convert both and return what is noted of the other; the files must be equal."""
        files = []
        for number, source in enumerate((self.plain, self.other)):
            file = self.directory / f"{number}.gguf"
            report = convert(source, file, recipe="int4")
            drawn = blueprint(source, recipe="int4")
            assert file.read_bytes()[: len(drawn.header)] == drawn.header
            made = [Path(output).read_bytes() for output in report.outputs]
            assert len(made[0]) == drawn.nbytes
            assert len(made) == 1 + (report.projector is not None)
            files.append(made)
        assert files[0] == files[1]
        assert {one.name for one in inspect_checkpoint(self.other).tensors}
        return report.notes


MakeForms = Callable[[Geometry], Forms]


def experts_apart(
    tensors: Tensors, name_of: Callable[[int, str], str]
) -> Iterator[tuple[str, Stored]]:
    """Each expert's matrices [out, in] as tensors of their own; `name_of` names one."""
    for name, stored in tensors.items():
        before, found, kind = name.partition(".experts.")
        if not found:
            yield name, stored
            continue
        for expert, matrix in enumerate(stored.words):
            turned = matrix.T
            half = len(turned) // 2
            parts = (
                {"gate_proj": turned[:half], "up_proj": turned[half:]}
                if kind == "gate_up_proj"
                else {"down_proj": turned}
            )
            for part, words in parts.items():
                yield f"{before}.experts.{name_of(expert, part)}.weight", bf16(words)


LINEAR_EXPERTS: dict[str, Callable[[int, str], str]] = {
    "one by one": lambda expert, part: f"{expert}.{part}",
    "Axolotl": lambda expert, part: f"{part}s.{expert}",
}


def stacked(tensors: Tensors) -> Tensors:
    """The experts' three matrices, of all experts each, as MLX writes them: [expert, out, in]."""
    made: Tensors = {}
    for name, stored in tensors.items():
        before, found, kind = name.partition(".experts.")
        if not found:
            made[name] = stored
            continue
        turned = stored.words.transpose(0, 2, 1)
        half = turned.shape[1] // 2
        parts = {"gate_proj": turned[:, :half], "up_proj": turned[:, half:]}
        parts = parts if kind == "gate_up_proj" else {"down_proj": turned}
        made |= {f"{before}.experts.{part}.weight": bf16(words) for part, words in parts.items()}
    return made
