"""Memory that a long-lived process freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Once a larger block was freed, glibc takes blocks of 2 MiB from its heap, where they leave holes.
SCRIPT = """
import ctypes, sys
from llama4_edge.system.allocator import return_large_blocks

if sys.argv[1] == "yes":
    return_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo.restype = type("mallinfo", (ctypes.Structure,), {"_fields_": [
    (name, ctypes.c_int) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]})

libc.free(libc.malloc(16 << 20))
before = libc.mallinfo().hblkhd
for _ in range(64):
    libc.malloc(2 << 20)
print(libc.mallinfo().hblkhd - before)  # what is mapped by itself, and goes back when it is freed
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_large_blocks_are_mapped_by_themselves() -> None:
    usual, mapped = (
        int(subprocess.check_output([sys.executable, "-c", SCRIPT, called]))
        for called in ("no", "yes")
    )
    assert usual == 0
    assert mapped >= 64 * (2 << 20)
