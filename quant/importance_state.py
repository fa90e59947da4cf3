"""What a calibration that is not done yet has added up, in a file: to go on from, exactly.

    magic, version, length of the header; a header in JSON
    for each tensor of it: sums, float64; counts, int64
    a CRC-32 of all of that

Promises that a file is whole or refused, and that nothing is allocated that it is too short for.
Numbers are little-endian. Knows no model.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import OutputError
from ..untrusted import Reader

_MAGIC = b"L4-CALIB"
_VERSION = 1
_MOST = 2**31
_BEGIN = struct.Struct("<8sII")
_END = struct.Struct("<I")
_HINT = "Remove it, and calibrate from the beginning."
_READER = Reader(OutputError, 2**36, _HINT)


@dataclass(frozen=True)
class CalibrationState:
    """How far a calibration is.

    Args:
        of: what it is of, each with a digest: files, texts and settings that must be the same.
        done: how many texts were read.
        numbers: sums beside those of the tensors, by name.
        tensors: sums of squares, float64 of [n_matrices, row_length], and counts, int64 of
            [n_matrices], by name.
    """

    of: Mapping[str, str]
    done: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = field(
        default_factory=dict
    )

    def data(self) -> bytes:
        """The bytes of its file."""
        header = json.dumps(
            {
                "of": dict(self.of),
                "done": self.done,
                # Exactly: a decimal fraction of 17 digits is the same number again.
                "numbers": dict(self.numbers),
                "tensors": [
                    {"name": name, "n_matrices": len(sums), "row_length": sums.shape[1]}
                    for name, (sums, _) in self.tensors.items()
                ],
            }
        ).encode()
        parts = [_BEGIN.pack(_MAGIC, _VERSION, len(header)), header]
        for sums, counts in self.tensors.values():
            parts += [sums.astype("<f8").tobytes(), counts.astype("<i8").tobytes()]
        body = b"".join(parts)
        return body + _END.pack(zlib.crc32(body))


def read_state(path: str | os.PathLike[str]) -> CalibrationState:
    """Read what `CalibrationState.data` gave.

    Raises:
        OutputError: it is something else, damaged, or of another release.
    """
    name = os.fspath(path)
    data = _READER.data(path)
    body, end = data[: -_END.size], data[-_END.size :]
    begin = body[: _BEGIN.size]
    magic, version, length = _BEGIN.unpack(begin) if len(begin) == _BEGIN.size else (b"", 0, 0)
    if magic != _MAGIC or version != _VERSION:
        found = "something else" if magic != _MAGIC else f"version {version}"
        raise OutputError(
            f"{name} is not the state of a calibration", found=found, expected="one", hint=_HINT
        )
    if _END.pack(zlib.crc32(body)) != end:
        raise OutputError(f"{name} is damaged", found="another checksum", hint=_HINT)
    at = _BEGIN.size + length
    record = _READER.as_record(_READER.parse(body[_BEGIN.size : at], name), name)
    tensors: dict[str, Any] = {}
    for one in record.records("tensors"):
        tensor, n_matrices = one.text("name"), one.integer("n_matrices", 1, _MOST)
        row_length = one.integer("row_length", 1, _MOST)
        count = n_matrices * row_length
        if at + 8 * (count + n_matrices) > len(body):
            raise record.fault("tensors", f"no more than {len(body)} bytes")
        sums = np.frombuffer(body, "<f8", count, at).reshape(n_matrices, row_length)
        counts = np.frombuffer(body, "<i8", n_matrices, at + 8 * count)
        tensors[tensor] = (sums.astype(np.float64), counts.astype(np.int64))
        at += 8 * (count + n_matrices)
    numbers = record.record("numbers")
    return CalibrationState(
        of={key: str(value) for key, value in record.record("of").items()},
        done=record.integer("done"),
        numbers={key: numbers.number(key) for key in numbers},
        tensors=tensors,
    )
