"""Tokens as llama.cpp takes them: one batch for one sequence, refilled for each call.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SEQUENCE = 0
"""The one sequence that an engine decodes."""


class Batch:
    """A llama_batch for one sequence, allocated once and seen through NumPy."""

    def __init__(self, bindings: Any, size: int) -> None:
        self.native = bindings.llama_batch_init(size, 0, 1)
        self._token = np.ctypeslib.as_array(self.native.token, shape=(size,))
        self._pos = np.ctypeslib.as_array(self.native.pos, shape=(size,))
        self._output = np.ctypeslib.as_array(self.native.logits, shape=(size,))
        np.ctypeslib.as_array(self.native.n_seq_id, shape=(size,))[:] = 1
        for index in range(size):
            self.native.seq_id[index][0] = SEQUENCE

    def fill(self, tokens: Sequence[int], first: int, outputs: int) -> None:
        """Hold these tokens from position ``first`` on; the last ``outputs`` return logits."""
        count = len(tokens)
        self.native.n_tokens = count
        self._token[:count] = tokens
        self._pos[:count] = np.arange(first, first + count)
        self._output[:count] = 0
        self._output[count - outputs : count] = 1
