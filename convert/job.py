"""Everything about a conversion that is known once the headers are read: what goes where.

`prepare` reads top-down: the text model, the projector, the slabs of both. Decides every name, type
and byte; reads no weight and writes nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .._version import __version__
from ..errors import CheckpointError, OutputError
from ..quant import Assignment, Recipe, TensorType, recipe_notes
from ..quant.encode import encoder_version
from .checkpoint import Checkpoint
from .config import ModelConfig, parse_config
from .directories import cached_repository
from .importance import check_recipe, matrix_use
from .kept import form_notes, settle_recipe
from .layout import lay_out, lay_out_vision
from .metadata import ROPE_FREQS, rope_factors
from .part_layout import Part, header_digest, plan_parts
from .report import MatrixUse
from .request import Request
from .shard_header import StoredTensor
from .shards import Shards
from .slabs import ROW_SLAB_BYTES, SLAB_BYTES, Output, Slab, slabs_of
from .spelling import spell
from .text_model import MappedTensor, TextModel, read_text_model
from .tokenizer import Vocabulary, read_vocabulary
from .unused import take_unused
from .vision import map_vision
from .vision_config import check_vision
from .vision_metadata import read_processor


@dataclass(frozen=True)
class _Model:
    """A model to be written, in one file or in parts: where each stored tensor goes."""

    tensors: tuple[MappedTensor, ...]
    assignments: tuple[Assignment, ...]
    parts: tuple[Part, ...]
    outputs: Mapping[str, Output]


@dataclass(frozen=True)
class Job:
    """A conversion: its files, and the slabs that fill them.

    `source` is what is converted, `read` the directory or the files that are read and so are never
    replaced, and `shards` the access to them. `text` and `projector` have the planned parts of
    each, either of which may be nothing; parts are numbered in that order. `computed` has the data
    of tensors that no stored one becomes. `recipe` is what the report calls the types that were
    chosen, and `layout` says in words how the text model is stored. With `encodes`, a recipe says
    how large most of it becomes.
    """

    source: Path
    read: Path | tuple[Path, ...]
    shards: Shards
    recipe: str
    computed: Mapping[str, memoryview]
    tensors: tuple[MappedTensor, ...]
    assignments: tuple[Assignment, ...]
    text: tuple[Part, ...]
    projector: tuple[Part, ...]
    outputs: Mapping[str, Output]
    slabs: tuple[Slab, ...]
    identity: Mapping[str, str]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    layout: Mapping[str, str]
    encodes: bool
    importance: MatrixUse | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """All files."""
        return (*self.text, *self.projector)

    @property
    def files(self) -> list[Path]:
        """The files whose tensors are converted, in order."""
        return list(dict.fromkeys(slab.stored.file for slab in self.slabs))

    @property
    def source_files(self) -> list[Path]:
        """All files that numbers come from, those of scales included."""
        return _source_files(self.tensors)

    @property
    def source_bytes(self) -> int:
        """Bytes of the tensors that are converted, as stored."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def with_form_notes(self) -> Job:
        """The same, which also says what is decoded from what, and what keeps its numbers."""
        types = {one.tensor.name: one.type for one in self.assignments}
        return replace(self, notes=(*self.notes, *form_notes(self.tensors, types)))


def prepare(checkpoint: Checkpoint, request: Request, output: str | os.PathLike[str] | None) -> Job:
    """Plan a conversion.

    Raises:
        CheckpointError: the checkpoint is not whole, or has no vision tower where only that is
            wanted.
        UnsupportedError: llama.cpp could not run what it would become.
        VocabularyError: llama.cpp would read the tokenizer differently.
        RecipeError: an override that fits no tensor, or a type that needs an importance matrix.
        ModelFileError: the importance matrix is of another model.
        OutputError: `output` cannot be the name of a file.
    """
    text, model, vocabulary = None, None, None
    types = request.matrices.name.lower()
    notes: list[str] = []
    if request.text:
        text = read_text_model(checkpoint)
        text, recipe = settle_recipe(text, request.recipe, checkpoint.shards)
        check_recipe(recipe, request.matrix)
        types = recipe.name
        vocabulary = read_vocabulary(checkpoint, text.config)
        target = target_file(output, f"{_name(checkpoint)}-{types}.gguf")
        model = _text_job(checkpoint, text, vocabulary, recipe, request, target)
        notes = recipe_notes(recipe, [assigned.tensor for assigned in model.assignments])
        stored, config = text.vision, text.config
    else:
        stored = spell(checkpoint.tensors).vision
        config = parse_config(checkpoint.config)
        target = target_file(output, _projector_name(_name(checkpoint), request))
    projector = None
    spare: list[str] = []
    vision_notes: list[str] = []
    if request.vision and _has_vision(checkpoint, stored):
        if model is not None:
            stem = target.name.removesuffix(".gguf").removesuffix(f"-{types}")
            target = target.with_name(_projector_name(stem, request))
        first = len(model.parts) if model else 0
        stored = dict(stored)
        spare, vision_notes = take_unused(stored)
        projector = _vision_job(checkpoint, stored, config, request, target, first)
    elif not request.text:
        raise _no_tower(checkpoint, stored)
    elif request.vision and stored:
        vision_notes = ["weights for pictures were left out: config.json has no vision_config"]
    models = [made for made in (model, projector) if made is not None]
    tensors = tuple(tensor for made in models for tensor in made.tensors)
    outputs = {name: place for made in models for name, place in made.outputs.items()}
    parts = [part for made in models for part in made.parts]
    unused = () if projector else tuple(tensor.name for tensor in stored.values())
    factors = None if text is None else rope_factors(text.config)
    return Job(
        source=checkpoint.path,
        read=checkpoint.path,
        shards=checkpoint.shards,
        recipe=types,
        computed={} if factors is None else {ROPE_FREQS: factors.data.cast("B")},
        tensors=tensors,
        assignments=tuple(assigned for made in models for assigned in made.assignments),
        text=() if model is None else model.parts,
        projector=() if projector is None else projector.parts,
        outputs=outputs,
        slabs=all_slabs(tensors, outputs),
        identity={
            **identity_of(checkpoint.shards, tensors, parts),
            **({"importance matrix": request.matrix.digest} if request.matrix else {}),
        },
        left_out=(*unused, *spare, *(text.left_out if text else ())),
        notes=(*_text_notes(text, vocabulary), *notes, *vision_notes),
        layout=text.layout if text else {},
        encodes=request.text,
        importance=_matrix_use(model, request),
    )


def planned_projector(checkpoint: Checkpoint, matrices: TensorType) -> Part | None:
    """The file of the vision tower and its projector, or None where a checkpoint has none.

    Raises:
        CheckpointError, UnsupportedError: as `prepare`.
    """
    if not _has_vision(checkpoint, spell(checkpoint.tensors).vision):
        return None
    request = Request(
        text=False, vision=True, recipe=None, overrides=(), matrix=None, split_size=None,
        matrices=matrices,
    )  # fmt: skip
    (part,) = prepare(checkpoint, request, None).projector
    return part


def _has_vision(checkpoint: Checkpoint, stored: Mapping[str, StoredTensor]) -> bool:
    return bool(stored) and checkpoint.config.get("vision_config") is not None


def _no_tower(checkpoint: Checkpoint, stored: Mapping[str, StoredTensor]) -> CheckpointError:
    described = checkpoint.config.get("vision_config") is not None
    found = "no weights of one" if described else "no vision_config in config.json"
    return CheckpointError(
        f"{checkpoint.path} has no vision tower",
        found=found if stored or described else "a text model alone",
        expected="a multimodal checkpoint, as text=False needs",
    )


def _text_job(
    checkpoint: Checkpoint,
    text: TextModel,
    vocabulary: Vocabulary,
    recipe: Recipe,
    request: Request,
    target: Path,
) -> _Model:
    matrix = request.matrix
    layout = lay_out(text.config, recipe, request.overrides, checkpoint, vocabulary, matrix=matrix)
    parts, outputs = plan_parts(layout.writer, layout.assignments, target, request.split_size)
    if matrix is not None:
        specs = [assigned.tensor for assigned in layout.assignments]
        matrix.check(specs, text.config.hparams.n_layer)
        outputs = matrix.weigh(outputs)
    return _Model(text.tensors, tuple(layout.assignments), tuple(parts), outputs)


def _matrix_use(model: _Model | None, request: Request) -> MatrixUse | None:
    """What the importance matrix does for the text model.

    Raises:
        RecipeError: a type needs one.
    """
    if model is None:
        return None
    types = {one.tensor.name: one.type for one in model.assignments}
    encoded = (
        target.name
        for tensor in model.tensors
        for target in tensor.targets
        if tensor.kept is not types[target.name]
    )
    return matrix_use(request.matrix, model.assignments, encoded)


def _vision_job(
    checkpoint: Checkpoint,
    stored: Mapping[str, StoredTensor],
    model: ModelConfig,
    request: Request,
    target: Path,
    first: int,
) -> _Model:
    """The projector's file, which becomes part number `first`; the text model's is `model`."""
    config, n_embd = check_vision(checkpoint.config), model.hparams.n_embd
    mapped = map_vision(stored, config, n_embd, model.forms)
    processor = read_processor(checkpoint.path, config.image_size)
    layout = lay_out_vision(config, n_embd, request.matrices, checkpoint, processor)
    parts, outputs = plan_parts(layout.writer, layout.assignments, target, None, first=first)
    return _Model(tuple(mapped), tuple(layout.assignments), tuple(parts), outputs)


def all_slabs(mapped: Sequence[MappedTensor], outputs: Mapping[str, Output]) -> tuple[Slab, ...]:
    """All slabs, shard by shard and in the order of their bytes, so that disks read on."""
    in_order = sorted(mapped, key=lambda tensor: (tensor.stored.file, tensor.stored.offset))
    return tuple(
        slab
        for tensor in in_order
        for slab in slabs_of(
            tensor.stored,
            [outputs[to.name] for to in tensor.targets],
            experts=tensor.experts,
            expert=tensor.expert,
            weight=tensor.weight,
            kept=tensor.kept,
        )
    )


def identity_of(
    shards: Shards, mapped: Sequence[MappedTensor], parts: Sequence[Part]
) -> dict[str, str]:
    """What must be the same for a conversion to go on where another stopped.

    The headers hold all that recipe, overrides, config and tokenizer decide.
    """
    return {
        "llama4-edge": __version__,
        "ggml": encoder_version(),
        "slab sizes": f"{SLAB_BYTES}, {ROW_SLAB_BYTES}",
        "recipe, types, config or tokenizer": header_digest(parts),
        **{key: shards.identity(file) for file, key in source_keys(_source_files(mapped)).items()},
    }


def source_keys(files: Sequence[Path]) -> dict[Path, str]:
    """What each file is called in an identity: by its name, or all of its path where two share it.

    The weights of each adapter have the same name.
    """
    names = Counter(file.name for file in files)
    return {file: file.name if names[file.name] == 1 else str(file) for file in files}


def _source_files(mapped: Sequence[MappedTensor]) -> list[Path]:
    return sorted({part.file for tensor in mapped for part in tensor.parts})


def _text_notes(text: TextModel | None, vocabulary: Vocabulary | None) -> list[str]:
    """What was decided without being asked for."""
    if text is None or vocabulary is None:
        return []
    notes = [*text.notes, *vocabulary.notes]
    if vocabulary.chat_template is None:
        notes.append("the checkpoint has no chat template: a base model, which `chat` will refuse")
    if vocabulary.further_ends:
        names = ", ".join(vocabulary.tokens[end] for end in vocabulary.further_ends)
        notes.append(f"an answer ends at {names} too, here but not in llama.cpp's own tools")
    return notes


def _name(checkpoint: Checkpoint) -> str:
    """What the model is called by the directory or the repository that it is in."""
    repository = cached_repository(checkpoint.path)
    return repository.split("/")[1] if repository else checkpoint.path.resolve().name


def _projector_name(model: str, request: Request) -> str:
    """The file of the projector, by a name that llama.cpp's tools take for one's."""
    return f"mmproj-{model}-{request.matrices.name.lower()}.gguf"


def target_file(output: str | os.PathLike[str] | None, name: str) -> Path:
    """The file to write, which is called `name` where `output` is no more than a directory.

    Raises:
        OutputError: `output` cannot be the name of a file.
    """
    if output is None:
        return Path(name)
    target = Path(output)
    try:
        nameable = b"\0" not in os.fsencode(target)
    except UnicodeEncodeError:
        nameable = False
    if not nameable:
        raise OutputError(f"{os.fspath(output)!a} cannot be the name of a file")
    # "models/" is a directory, also where there is none.
    is_directory = target.is_dir() or os.fspath(output).endswith(os.sep)
    target = target / name if is_directory else target
    # A link is written through: what it points to is replaced, on the disk where that lies. What
    # /dev/stdout points to has no name.
    leads_on = target.is_symlink() and (target.is_file() or not target.exists())
    return Path(os.path.realpath(target)) if leads_on else target
