"""What the tests of the plan share: small models, and workers on the loopback interface as GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.checkpoint import MAVERICK_LIKE
from llama4_edge.runtime.workers.worker import local_workers
from tests.fixtures import MakeCheckpoint, MakeGGUF


@pytest.fixture(scope="session")
def maverick_int4(make_gguf: MakeGGUF, make_checkpoint: MakeCheckpoint) -> Path:
    return make_gguf(make_checkpoint(MAVERICK_LIKE), "int4")


@pytest.fixture(scope="session")
def two_workers() -> Iterator[tuple[str, ...]]:
    with local_workers(2) as endpoints:
        yield endpoints
