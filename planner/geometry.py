"""What a model weighs, tensor by tensor, and what its KV cache takes, cell by cell.

Promises the bytes of the file at hand, or of the file that a model would be converted to. The
formula of the KV cache is llama.cpp's (llama-kv-cache-iswa.cpp with ``swa_full`` off), and tests
compare it with what llama.cpp reports. Knows nothing of devices.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..architecture import ATTENTION_CHUNK, Hyperparameters
from ..errors import RecipeError
from ..quant.recipe_file import is_recipe_file
from ..quant.roles import role_of
from ..runtime.checked_adapters import CheckedAdapters
from ..runtime.files.gguf_file import MAGIC
from ..runtime.files.model_file import check_model_file
from ..runtime.settings import EngineSettings, tensor_type
from ..system.temporary import temporary_path

if TYPE_CHECKING:
    from ..convert.vision import VisionWeights

_LAYER = re.compile(r"blk\.(\d+)\.")
# llama.cpp rounds the cells of a cache up to these (GGML_PAD in llama-context.cpp).
_CELLS = 256
_FLOAT = 4  # bytes of a logit


@dataclass(frozen=True)
class Weight:
    """A tensor: its bytes, its role (one of `quant.roles.ROLES`), its layer if it is in one."""

    name: str
    nbytes: int
    role: str
    layer: int | None


@dataclass(frozen=True)
class Geometry:
    """A model as far as memory and speed go.

    ``source`` is what was asked for, ``path`` a file whose header llama.cpp can read. ``weights``
    are those of the text model; ``vision`` is what no such file holds, None where there is nothing,
    or where a GGUF does not say. ``files`` are those with the weights, where they
    are here. ``checked`` are the adapters, ``adapters`` their bytes for each tensor that they
    change.
    """

    name: str
    source: str
    path: Path
    recipe: str | None
    hparams: Hyperparameters
    weights: tuple[Weight, ...]
    note: str | None = None
    vision: VisionWeights | None = None
    files: tuple[Path, ...] = ()
    checked: CheckedAdapters | None = None
    adapters: Mapping[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def tied(self) -> bool:
        """Whether the token embedding is the output matrix too; llama.cpp then holds it twice."""
        return all(weight.role != "output" for weight in self.weights)

    def read_per_token(self, weight: Weight) -> int:
        """Bytes of a tensor that decoding one token reads: one row of the embedding, the experts
        that are used, all of everything else."""
        if weight.role == "expert":
            return weight.nbytes * self.hparams.n_expert_used // self.hparams.n_expert
        if weight.role == "embedding":
            return weight.nbytes // self.hparams.n_vocab
        return weight.nbytes

    def output_bytes(self, settings: EngineSettings) -> int:
        """Bytes of the logits that a context returns, a row for each sequence."""
        return _FLOAT * self.hparams.n_vocab * settings.n_parallel

    def kv_bytes(self, layer: int, settings: EngineSettings) -> int:
        """Bytes of one layer's keys and values."""
        cells = kv_cells(self.hparams.is_full(layer), settings)
        return self._cell_bytes(settings) * cells

    def kv_read_per_token(self, layer: int, settings: EngineSettings, depth: int) -> int:
        """Bytes of one layer's cache that decoding the token after `depth` others reads."""
        cells = depth if self.hparams.is_full(layer) else min(depth, ATTENTION_CHUNK)
        return self._cell_bytes(settings) * cells

    def _cell_bytes(self, settings: EngineSettings) -> int:
        row = self.hparams.n_head_kv * self.hparams.head_dim
        return sum(tensor_type(kind).row_bytes(row) for kind in (settings.type_k, settings.type_v))

    def with_experts_used(self, count: int | None) -> Geometry:
        """The same with so many experts a token; None leaves what the model says."""
        if count is None:
            return self
        return replace(self, hparams=replace(self.hparams, n_expert_used=count))

    def with_adapters(self, settings: EngineSettings) -> Geometry:
        """The same with the adapters that settings name.

        Raises:
            ModelFileError: one is damaged, or of another model.
        """
        if not (settings.adapters or settings.control_vectors):
            return self
        info = check_model_file(self.path, needs_tokenizer=False, whole=False)
        checked = CheckedAdapters.of(settings, info)
        if checked is None:
            return self
        return replace(self, checked=checked, adapters=checked.sizes)


def kv_cells(full: bool, settings: EngineSettings) -> int:
    """Cells in the cache of a layer, for all sequences together."""
    context = _padded(settings.n_ctx)
    if not full:
        ubatch = min(settings.n_ubatch, settings.n_batch, settings.n_ctx * settings.n_parallel)
        context = _padded(min(context, ATTENTION_CHUNK + ubatch))
    return context * settings.n_parallel


def _padded(cells: int) -> int:
    return -(-cells // _CELLS) * _CELLS


@contextmanager
def open_geometry(model: str | os.PathLike[str], recipe: str | None = None) -> Iterator[Geometry]:
    """The geometry of a model; its ``path`` exists while this is open.

    Args:
        model: a GGUF; or what `convert.blueprint` takes: a preset, a config.json, a checkpoint
            directory, a repository on the hub.
        recipe: what such a model would be converted with, by its name or its file; None is what
            suits it.

    Raises:
        RecipeError: a recipe for a GGUF, whose types are given, or an unknown one.
        Llama4EdgeError: there is no such model, or llama.cpp cannot run it.
    """
    if is_gguf(model):
        if recipe is not None:
            raise RecipeError(
                f"{os.fspath(model)} is a GGUF, whose types are given",
                found=f"the recipe {recipe}",
                hint="Leave the recipe out, or give the checkpoint that the file was made of.",
            )
        yield _of_gguf(Path(model))
        return
    # Only here, because planning for a GGUF needs nothing of the converter.
    from ..convert.blueprint import blueprint

    drawing = blueprint(model, recipe=recipe)
    with temporary_path("llama4-plan-") as path:
        yield Geometry(
            name=drawing.name,
            source=os.fspath(model),
            path=drawing.write_header(path),
            recipe=recipe if recipe and is_recipe_file(recipe) else drawing.recipe,
            hparams=drawing.config.hparams,
            weights=_weights((tensor.name, tensor.nbytes) for tensor in drawing.tensors),
            note=drawing.note,
            vision=drawing.vision,
        )


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether this is meant as a GGUF: by its name, or by its first bytes."""
    path = Path(path)
    if path.suffix == ".gguf":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _of_gguf(path: Path) -> Geometry:
    info = check_model_file(path, needs_tokenizer=False)
    return Geometry(
        name=info.name,
        source=str(path),
        path=path,
        recipe=None,
        hparams=info.hparams,
        weights=_weights((tensor.name, tensor.nbytes) for tensor in info.tensors),
        files=tuple(part.path for part in info.parts),
    )


def _weights(tensors: Iterable[tuple[str, int]]) -> tuple[Weight, ...]:
    weights = []
    for name, nbytes in tensors:
        layer = _LAYER.match(name)
        weights.append(Weight(name, nbytes, role_of(name), int(layer[1]) if layer else None))
    return tuple(weights)
