"""What is in this checkpoint, and how does it become a GGUF?

``checkpoint`` reads headers, ``config`` and ``names`` say what must be there, ``tokenizer`` and
``metadata`` what is said about it, ``shards`` and ``hub`` bring the files, ``slabs`` cuts tensors,
``pipeline`` moves the numbers, ``numbers`` and ``fp8`` know how they are stored, ``output`` writes
the file, and ``converter`` is the job from top to bottom.

Promises that importing it loads none of them: they come with the first call of `convert`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..quant import DEFAULT_RECIPE

if TYPE_CHECKING:
    from ..progress import Progress
    from .report import Report

__all__ = ["convert"]


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: str = DEFAULT_RECIPE,
    types: Sequence[tuple[str, str]] = (),
    split_size: int | None = None,
    revision: str | None = None,
    keep_source: bool = False,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Convert the checkpoint `source` to the GGUF file `output`.

    Everything is checked, from the headers alone, before anything is written. The file gets its
    name only when it is whole. A conversion that was interrupted goes on when it is called again
    with the same arguments, and ends in the same bytes.

    Args:
        source: directory with config.json, tokenizer.json and the safetensors; or the name of a
            repository on the Hugging Face Hub, ``org/name``, whose shards are fetched one after the
            other. What a directory of that name would be is taken for one.
        output: file to write, or a directory to write it into; by default
            ``<source's name>-<recipe>.gguf`` in the current directory.
        recipe: one of `llama4_edge.RECIPES`.
        types: (regex, type name) pairs that decide before the recipe, the first match first.
        split_size: bytes of tensors that one file may hold; more go into further parts,
            ``NAME-00001-of-00003.gguf`` and so on.
        revision: of the repository: a branch, a tag or a commit; by default its main branch.
        keep_source: leave the fetched shards in huggingface_hub's cache.
        force: replace an existing `output`, and what an interrupted conversion of another kind
            left.
        dry_run: check and plan everything, write nothing; too small a disk is a note then.
        threads: encoders that work at the same time; by default one for each core.
        progress: called after each slab with the bytes read so far.

    Returns:
        What was written, by role.

    Raises:
        CheckpointError: the checkpoint is not whole.
        HubError: the repository cannot be had.
        UnsupportedError: it is whole, and llama.cpp could not run it.
        DamagedTensorError: a weight is infinite or NaN, or the checkpoint changes meanwhile.
        VocabularyError: llama.cpp would read the tokenizer differently.
        RecipeError: no such recipe or type, or an override that fits no tensor.
        SettingError: `split_size` or `threads` is less than 1.
        OutputError: the target exists, its disk is too small, or writing failed.
    """
    from .converter import run

    return run(
        source,
        output,
        recipe=recipe,
        types=types,
        split_size=split_size,
        revision=revision,
        keep_source=keep_source,
        force=force,
        dry_run=dry_run,
        threads=threads,
        progress=progress,
    )
