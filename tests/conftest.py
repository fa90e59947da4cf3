"""What more than one room's tests need: small checkpoints, their GGUFs, and Meta's tokenizer.

Everything is made once a session and must not be written to; a test that damages a file copies it
first. Seeds are those for which the router's choices are clear (see tests/reference).
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from demo.checkpoint import (
    MAVERICK_LIKE,
    SCOUT_BASE_LIKE,
    SCOUT_LIKE,
    TEXT_ONLY,
    TIED,
    Geometry,
    write_checkpoint,
)
from tests.fixtures import MakeCheckpoint, MakeGGUF

# transformers asks the hub about models by name; these have none.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Some tests press Ctrl-C, which a process ignores that a shell started in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """``make_checkpoint(geometry, seed=0, tokenizer=None)``, written once for equal arguments."""
    made: dict[tuple[Geometry, int, Path | None], Path] = {}

    def make(geometry: Geometry, seed: int = 0, tokenizer: Path | None = None) -> Path:
        key = (geometry, seed, tokenizer)
        if key not in made:
            directory = tmp_path_factory.mktemp("checkpoint")
            made[key] = write_checkpoint(directory, geometry, seed=seed, tokenizer=tokenizer)
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_gguf(tmp_path_factory: pytest.TempPathFactory) -> MakeGGUF:
    """``make_gguf(checkpoint, recipe="bf16")``, converted once for equal arguments."""
    from llama4_edge import convert

    made: dict[tuple[Path, str], Path] = {}

    def make(checkpoint: Path, recipe: str = "bf16") -> Path:
        key = (checkpoint, recipe)
        if key not in made:
            output = tmp_path_factory.mktemp("gguf") / f"{checkpoint.name}-{recipe}.gguf"
            convert(checkpoint, output, recipe=recipe)
            made[key] = output
        return made[key]

    return make


@pytest.fixture(scope="session")
def scout_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SCOUT_LIKE)


@pytest.fixture(scope="session")
def scout_base_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SCOUT_BASE_LIKE)


@pytest.fixture(scope="session")
def maverick_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(MAVERICK_LIKE)


@pytest.fixture(scope="session")
def text_only_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(TEXT_ONLY)


@pytest.fixture(scope="session")
def tied_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(TIED)


@pytest.fixture(scope="session")
def real_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Meta's tokenizer as a published repository holds it (see tests/reference)."""
    from tests.reference.real_tokenizer import write_real_tokenizer

    return write_real_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def full_vocabulary_checkpoint(make_checkpoint: MakeCheckpoint, real_tokenizer_dir: Path) -> Path:
    """A narrow model with all 202048 tokens and Meta's tokenizer."""
    narrow = replace(
        SCOUT_LIKE,
        hidden=64,
        heads=2,
        kv_heads=1,
        head_dim=32,
        expert_ffn=64,
        dense_ffn=128,
        vocabulary=202_048,
        vision=None,
    )
    return make_checkpoint(narrow, tokenizer=real_tokenizer_dir)


@pytest.fixture(scope="session")
def scout_bf16(make_gguf: MakeGGUF, scout_checkpoint: Path) -> Path:
    return make_gguf(scout_checkpoint, "bf16")


@pytest.fixture(scope="session")
def scout_int4(make_gguf: MakeGGUF, scout_checkpoint: Path) -> Path:
    return make_gguf(scout_checkpoint, "int4")


@pytest.fixture(scope="session")
def full_vocabulary_bf16(make_gguf: MakeGGUF, full_vocabulary_checkpoint: Path) -> Path:
    return make_gguf(full_vocabulary_checkpoint, "bf16")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few hundred tokens with a chat template, made without the converter."""
    from tests.tiny_model import with_chat_tokens

    return with_chat_tokens().write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
