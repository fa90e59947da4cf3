"""What more than one room's tests need: small checkpoints, their GGUFs, and Meta's tokenizer.

Everything is made once a test run and must not be written to; a test that damages a file copies it
first. Seeds are those for which the router's choices are clear (see tests/reference).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Generator
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
from tests.fixtures import MakeCheckpoint, MakeGGUF, MakeProjector, Once

# Threads that wait for others spin, which costs the other processes of a run their cores.
os.environ.setdefault("GOMP_SPINCOUNT", "300")

# transformers asks the hub about models by name; these have none.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# They count devices and compare with the CPU; workers on the loopback interface are their GPUs.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

# Some tests press Ctrl-C, which a process ignores that a shell started in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
# And some hang up, which a process ignores that was started with nohup.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores for this process: `-n auto` counts those of the machine."""
    from llama4_edge.system.cores import logical_cores

    return logical_cores()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Report modules that need PyTorch as skipped where it has no wheels (macOS on x86_64)."""
    report = yield
    if report.failed and "No module named 'torch'" in str(report.longrepr):
        report.outcome = "skipped"
        report.longrepr = (report.nodeid, 0, "Skipped: PyTorch is not installed")
    return report


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """``once(name, make)``: the directory that ``make(directory)`` fills, once in a test run.

    The processes of a run share it: who comes second waits for the first.
    """
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def directory(name: str, make: Callable[[Path], object]) -> Path:
        whole, draft = shared / name, shared / f"{name}.draft"
        with FileLock(shared / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir()
                make(draft)
                draft.rename(whole)
        return whole

    return directory


def digest(*values: object) -> str:
    """A name for `values`, the same in every process."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


@pytest.fixture(scope="session")
def make_checkpoint(once: Once) -> MakeCheckpoint:
    """``make_checkpoint(geometry, seed=0, tokenizer=None)``, written once for equal arguments."""

    def make(geometry: Geometry, seed: int = 0, tokenizer: Path | None = None) -> Path:
        return once(
            f"checkpoint-{digest(geometry, seed, tokenizer)}",
            lambda directory: write_checkpoint(directory, geometry, seed=seed, tokenizer=tokenizer),
        )

    return make


@pytest.fixture(scope="session")
def make_gguf(once: Once) -> MakeGGUF:
    """``make_gguf(checkpoint, recipe="bf16")``, converted once for equal arguments."""
    from llama4_edge import convert

    def make(checkpoint: Path, recipe: str = "bf16") -> Path:
        name = f"{checkpoint.name}-{recipe}.gguf"
        directory = once(
            f"gguf-{digest(checkpoint, recipe)}",
            lambda directory: convert(checkpoint, directory / name, recipe=recipe, vision=False),
        )
        return directory / name

    return make


@pytest.fixture(scope="session")
def make_projector(once: Once) -> MakeProjector:
    """``make_projector(checkpoint, vision_type="f16")``: its mmproj file, made once.

    The checkpoint needs a vision tower, as `SCOUT_LIKE` has one (of pictures of 56 by 56, whose
    features are 2 by 2) and the demo model (336 by 336).
    """
    from llama4_edge import convert

    def make(checkpoint: Path, vision_type: str = "f16") -> Path:
        name = f"mmproj-{checkpoint.name}-{vision_type}.gguf"
        directory = once(
            f"projector-{digest(checkpoint, vision_type)}",
            lambda directory: convert(
                checkpoint, directory / name, text=False, vision_type=vision_type
            ),
        )
        return directory / name

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
def real_tokenizer_dir(once: Once) -> Path:
    """Meta's tokenizer as a published repository holds it (see tests/reference)."""
    from tests.reference.real_tokenizer import write_real_tokenizer

    return once("tokenizer", write_real_tokenizer)


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
def scout_projector(make_projector: MakeProjector, scout_checkpoint: Path) -> Path:
    return make_projector(scout_checkpoint)


@pytest.fixture(scope="session")
def full_vocabulary_bf16(make_gguf: MakeGGUF, full_vocabulary_checkpoint: Path) -> Path:
    return make_gguf(full_vocabulary_checkpoint, "bf16")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few hundred tokens with a chat template, made without the converter."""
    from tests.tiny_model import with_chat_tokens

    return with_chat_tokens().write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_projector_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector for `tiny_path`: of pictures of 16 by 16 it makes 2 by 2 embeddings."""
    from tests.gguf_maker import tiny_projector

    return tiny_projector().write(tmp_path_factory.mktemp("tiny") / "mmproj-tiny.gguf")
