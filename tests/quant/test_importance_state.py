"""The state of a calibration: read exactly, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llama4_edge.errors import OutputError
from llama4_edge.quant.importance_state import CalibrationState, read_state

STATE = CalibrationState(
    {"model": "a", "text": "b"},
    7,
    {"nll": 0.1 + 0.2, "n": 3},
    {
        "blk.0.a.weight": (np.array([[1 / 3, 2], [3, 4e300]]), np.array([5, 2**60])),
        "blk.1.ü.weight": (np.array([[0.0]]), np.array([0])),
    },
)


def test_a_state_is_read_exactly(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(STATE.data())
    found = read_state(path)
    assert (found.of, found.done, found.numbers) == (STATE.of, 7, STATE.numbers)
    assert found.tensors.keys() == STATE.tensors.keys()
    for name, (sums, counts) in STATE.tensors.items():
        assert (found.tensors[name][0] == sums).all()
        assert (found.tensors[name][1] == counts).all()


def test_damage_is_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "state", STATE.data()
    for at in range(len(data)):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(OutputError, match=r"state is (damaged|not the state)"):
                read_state(path)
