"""Damages the header of a GGUF again and again and reads it: run as a child process by a test.

Usage: fuzz_headers.py FILE SCRATCH COUNT. Prints how many were read and how many refused; a crash
or any other exception than ModelFileError ends the process with the mutation's number in SCRATCH.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

from llama4_edge.errors import ModelFileError
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.files.model_file import check_model_file

# Counts, lengths and types as a parser fears them.
_NUMBERS = (0, 1, 8, 9, 2**30, 2**30 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def damaged(data: bytes, header: int, chance: random.Random) -> bytes:
    """`data` with its header changed in one of six ways."""
    # half of the places lie where the structure is, not in the texts of the vocabulary
    structure = (chance.randrange(1400), chance.randrange(header - 2600, header))
    at = chance.choice((chance.randrange(header), chance.choice(structure)))
    changed = bytearray(data)
    match chance.randrange(6):
        case 0:
            changed[at] ^= 1 << chance.randrange(8)
        case 1:
            changed[at : at + 4] = struct.pack("<I", chance.choice(_NUMBERS) % 2**32)
        case 2:
            changed[at : at + 8] = struct.pack("<Q", chance.choice(_NUMBERS))
        case 3:
            del changed[at:]
        case 4:
            changed[at:at] = chance.randbytes(chance.randrange(1, 33))
        case _:
            del changed[at : at + chance.randrange(1, 33)]
    return bytes(changed)


def main(source: Path, scratch: Path, count: int) -> None:
    chance = random.Random(20250405)
    data, header = source.read_bytes(), read_gguf(source).data_offset
    read = refused = 0
    target = scratch / "damaged.gguf"
    for number in range(count):
        (scratch / "number").write_text(str(number))
        target.write_bytes(damaged(data, header, chance))
        try:
            read_gguf(target)
            read += 1
            check_model_file(target)
        except ModelFileError:
            refused += 1
    sys.stdout.write(f"{read} {refused}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
