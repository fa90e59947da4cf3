"""What a model weighs, tensor by tensor, and what its KV cache takes, cell by cell.

Promises the bytes of the file at hand, or of the file that a model would become. The formula of the
KV cache is llama.cpp's (llama-kv-cache-iswa.cpp with ``swa_full`` off), and tests hold it against
what llama.cpp reports. Knows nothing of devices.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..architecture import ATTENTION_CHUNK, FULL_ATTENTION_EVERY
from ..errors import RecipeError
from ..quant import role_of
from ..quant.recipes import DEFAULT_RECIPE
from ..runtime.files.model_file import check_model_file
from ..runtime.settings import EngineSettings, KVType

if TYPE_CHECKING:
    from ..convert.vision import VisionWeights

_LAYER = re.compile(r"blk\.(\d+)\.")
# llama.cpp rounds the cells of a cache up to these (GGML_PAD in llama-context.cpp).
_CELLS = 256
# Bytes of a block of 32 numbers: 32 halves; a half and 32 bytes; a half and 16 bytes.
_KV_BLOCK_BYTES: dict[KVType, int] = {"f16": 64, "q8_0": 34, "q4_0": 18}
_KV_BLOCK = 32
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Weight:
    """A tensor: its bytes, its role (one of `quant.roles.ROLES`), its layer if it is in one."""

    name: str
    nbytes: int
    role: str
    layer: int | None


@dataclass(frozen=True)
class Geometry:
    """A model as far as memory and speed go; counts are counts, sizes are bytes.

    ``source`` is what was asked for, ``path`` what llama.cpp can read the header of. ``weights``
    are those of the text model; ``vision`` is what no such file holds, None where there is nothing,
    or where a GGUF does not say.
    """

    name: str
    source: str
    path: Path
    recipe: str | None
    n_layer: int
    n_expert: int
    n_expert_used: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int
    weights: tuple[Weight, ...]
    note: str | None = None
    vision: VisionWeights | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(weight.nbytes for weight in self.weights)

    @property
    def tied(self) -> bool:
        """Whether the token embedding is the output matrix too; llama.cpp then holds it twice."""
        return all(weight.role != "output" for weight in self.weights)

    def is_full(self, layer: int) -> bool:
        """Whether a layer attends to everything, rather than inside its chunk."""
        return (layer + 1) % FULL_ATTENTION_EVERY == 0

    def read_per_token(self, weight: Weight) -> int:
        """Bytes of a tensor that decoding one token reads: one row of the embedding, the experts
        that are used, all of everything else."""
        if weight.role == "expert":
            return weight.nbytes * self.n_expert_used // self.n_expert
        if weight.role == "embedding":
            return weight.nbytes // self.n_vocab
        return weight.nbytes

    def kv_bytes(self, layer: int, settings: EngineSettings) -> int:
        """Bytes of one layer's keys and values."""
        return self._cell_bytes(settings.kv_type) * kv_cells(self.is_full(layer), settings)

    def kv_read_per_token(self, layer: int, kv_type: KVType, depth: int) -> int:
        """Bytes of one layer's cache that decoding the token after `depth` others reads."""
        seen = depth if self.is_full(layer) else min(depth, ATTENTION_CHUNK)
        return self._cell_bytes(kv_type) * seen

    def _cell_bytes(self, kv_type: KVType) -> int:
        return 2 * self.n_head_kv * self.head_dim // _KV_BLOCK * _KV_BLOCK_BYTES[kv_type]


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
def opened(model: str | os.PathLike[str], recipe: str | None = None) -> Iterator[Geometry]:
    """The geometry of a model; its ``path`` is what llama.cpp can measure while this is open.

    Args:
        model: a GGUF; or anything that ``convert.blueprint`` draws one of: a preset, a config.json,
            a checkpoint directory, a repository on the hub.
        recipe: what such a model would be converted with, int4 by default. A GGUF has its types.

    Raises:
        Llama4EdgeError: there is no such model, or llama.cpp could not run it.
        RecipeError: a recipe for a GGUF.
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
    # Here, because it loads the converter, which a GGUF does without.
    from ..convert.blueprint import blueprint

    drawn = blueprint(model, recipe=recipe or DEFAULT_RECIPE)
    config = drawn.config
    with tempfile.TemporaryDirectory(prefix="llama4-plan-") as directory:
        yield Geometry(
            name=drawn.name,
            source=os.fspath(model),
            path=drawn.write_header(Path(directory) / "header.gguf"),
            recipe=drawn.recipe,
            n_layer=config.hparams.n_layer,
            n_expert=config.hparams.n_expert,
            n_expert_used=config.hparams.n_expert_used,
            n_head_kv=config.hparams.n_head_kv,
            head_dim=config.hparams.head_dim,
            n_vocab=config.hparams.n_vocab,
            n_ctx_train=config.hparams.n_ctx_train,
            weights=_weights((one.name, one.nbytes) for one in drawn.tensors),
            note=drawn.note,
            vision=drawn.vision,
        )


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether this is meant as a GGUF: by its name, or by its first bytes."""
    path = Path(path)
    if path.suffix == ".gguf":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == _GGUF_MAGIC


def _of_gguf(path: Path) -> Geometry:
    info = check_model_file(path, needs_tokenizer=False)
    return Geometry(
        name=info.name,
        source=str(path),
        path=path,
        recipe=None,
        n_layer=info.hparams.n_layer,
        n_expert=info.hparams.n_expert,
        n_expert_used=info.hparams.n_expert_used,
        n_head_kv=info.hparams.n_head_kv,
        head_dim=info.hparams.head_dim,
        n_vocab=info.hparams.n_vocab,
        n_ctx_train=info.hparams.n_ctx_train,
        weights=_weights((one.name, one.nbytes) for one in info.tensors),
    )


def _weights(tensors: Iterable[tuple[str, int]]) -> tuple[Weight, ...]:
    found = []
    for name, nbytes in tensors:
        layer = _LAYER.match(name)
        found.append(Weight(name, nbytes, role_of(name), int(layer[1]) if layer else None))
    return tuple(found)
