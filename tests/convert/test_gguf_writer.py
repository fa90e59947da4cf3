"""Our writer beside the gguf package's: the same bytes of metadata."""

from __future__ import annotations

import io
from collections.abc import Sequence

import gguf
import pytest
from gguf.gguf_writer import WriterState

from llama4_edge.convert.gguf_writer import GGUFWriter


def metadata(writer: gguf.GGUFWriter, arrays: Sequence[Sequence[object]]) -> bytes:
    for number, values in enumerate(arrays):
        writer.add_array(f"array.{number}", values)
    writer.add_uint32("count", 7)
    writer.add_string("name", "Llama 4")
    writer.add_bool("yes", True)
    buffer = io.BytesIO()
    writer.fout, writer.state = [buffer], WriterState.HEADER
    writer.write_kv_data_to_file()
    return buffer.getvalue()


def test_arrays_are_packed_to_the_packages_own_bytes() -> None:
    arrays = (
        ["", "a", "é", "hello world", "\0", "x" * 300, "😀" * 70_000],
        [0, 1, -1, 2**31 - 1, -(2**31)],
        [0.5, 1.5],
        [True, False],
    )
    theirs = metadata(gguf.GGUFWriter(None, "llama4"), arrays)
    assert metadata(GGUFWriter(), arrays) == theirs
    assert len(theirs) > 280_000


def test_numbers_that_are_too_large_are_no_wrapped_ones() -> None:
    with pytest.raises(OverflowError):
        metadata(GGUFWriter(), [[2**31]])
