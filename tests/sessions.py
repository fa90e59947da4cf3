"""What the tests of sessions share: a state that is llama.cpp's, and files of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llama4_edge.chat.conversation import Conversation, as_json, as_record
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.files.session_file import (
    CHECKED,
    FRAME,
    PREAMBLE,
    TAG_AND_LENGTH,
    SessionFile,
)
from llama4_edge.runtime.files.session_writer import SessionWriter
from llama4_edge.runtime.fingerprint import Fingerprint
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.runtime.state import Checkpoint, SequenceState

FINGERPRINT = Fingerprint(
    model="Tiny", bytes=1000, recipe="ALL_F32", weights="0" * 64, type_k="f16", type_v="f16",
    rotation="none", flash_attention="on", n_expert_used=1, llama_cpp="0.3.36",
    byte_order="little",
)  # fmt: skip

TALK = Conversation().user("Hello 🦙").assistant("Hi. \ud800")


def state_of(model: Path, n_tokens: int = 100) -> SequenceState:
    """A state of the tiny model, with a checkpoint at its end."""
    tokens = [at % 200 for at in range(n_tokens)]
    settings = EngineSettings(n_ctx=max(512, n_tokens), n_batch=512, n_threads=1)
    with Engine(model, settings) as engine:
        engine.prefill(tokens)
        state = engine.state_of(tokens)
    assert state is not None
    # The cache of the full layers is as long as that of the chunked ones, of which there are more.
    cells = np.array([1, n_tokens], "<u4").tobytes()
    at = state.data.tobytes().index(cells, 8 + len(cells))
    chunked = np.concatenate([state.data[:8], state.data[at:]])
    return SequenceState(state.tokens, state.data, (Checkpoint(n_tokens, chunked),))


def write(path: Path, state: SequenceState | None = None, talk: Conversation = TALK) -> Path:
    """A session's file."""
    with SessionWriter(path) as writer:
        writer.write(as_json(as_record(talk), indent=None), FINGERPRINT, state)
    return path


def append(path: Path, *turns: bytes) -> None:
    with SessionWriter(path) as writer:
        with SessionFile(path) as file:
            writer.goes_on(file)
        for turn in turns:
            writer.append(turn)


def with_frame(data: bytes, tag: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with another content of its first frame of that tag, lengths and checksums made."""
    result, at = b"", PREAMBLE.size
    magic, version, _, log = PREAMBLE.unpack(data[:at])
    done = False
    while at < len(data):
        found, _, length = FRAME.unpack(data[at : at + FRAME.size])
        content = data[at + FRAME.size : at + FRAME.size + length]
        if found == tag and not done:
            done = True
            content = change(content)
            if at < log:
                log += len(content) - length
        checksum = zlib.crc32(content, zlib.crc32(TAG_AND_LENGTH.pack(found, len(content))))
        result += FRAME.pack(found, checksum, len(content)) + content
        at += FRAME.size + length
    preamble = PREAMBLE.pack(magic, version, zlib.crc32(CHECKED.pack(version, log)), log)
    return preamble + result


def with_version(data: bytes, version: int) -> bytes:
    """The file as if another release had written it."""
    magic, _, _, log = PREAMBLE.unpack(data[: PREAMBLE.size])
    checksum = zlib.crc32(CHECKED.pack(version, log))
    return PREAMBLE.pack(magic, version, checksum, log) + data[PREAMBLE.size :]
