"""Tokens as llama.cpp takes them: a batch of pieces of sequences, filled anew for each call.

A batch has tokens, or rows of features that stand where tokens would, and never both. Knows nothing
of models.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Batch:
    """A llama_batch for ``size`` positions, each of one sequence, in memory that NumPy owns."""

    def __init__(self, bindings: Any, size: int) -> None:
        self.native = bindings.llama_batch()
        self._token = np.zeros(size, dtype=np.int32)
        self._pos = np.zeros(size, dtype=np.int32)
        self._sequence = np.zeros(size, dtype=np.int32)
        self._output = np.zeros(size, dtype=np.int8)
        self._counts = np.ones(size, dtype=np.int32)
        # llama.cpp wants a pointer to a list of sequences for each token: a list of one.
        each = self._sequence.itemsize * np.arange(size, dtype=np.uintp)
        self._lists = each + np.uintp(self._sequence.ctypes.data)
        self._rows: list[npt.NDArray[np.float32]] = []
        for name, array in (
            ("token", self._token),
            ("pos", self._pos),
            ("n_seq_id", self._counts),
            ("seq_id", self._lists),
            ("logits", self._output),
        ):
            _point(self.native, name, array)

    def clear(self) -> None:
        """Hold nothing."""
        self.native.n_tokens = 0
        if self._rows:
            self._rows = []
            self.native.embd = None
            _point(self.native, "token", self._token)

    def add(self, tokens: Sequence[int], sequence: int, first: int, outputs: int) -> int:
        """Hold these tokens too, from position ``first`` of a sequence on.

        Args:
            outputs: how many of the last ones return logits.

        Returns:
            The place of the last one in the batch.
        """
        begin = int(self.native.n_tokens)
        count = len(tokens)
        self.native.n_tokens = end = begin + count
        if count == 1:
            self._token[begin] = tokens[0]
            self._pos[begin] = first
            self._sequence[begin] = sequence
            self._output[begin] = outputs
            return begin
        self._token[begin:end] = tokens
        return self._place(begin, end, sequence, first, outputs)

    def add_rows(
        self, rows: npt.NDArray[np.float32], sequence: int, first: int, outputs: int
    ) -> int:
        """Hold rows of features, float32 of [count, n_embd]; otherwise as `add`."""
        begin = int(self.native.n_tokens)
        self.native.n_tokens = end = begin + len(rows)
        # One contiguous array for all, which lives until the next `clear`.
        every = np.ascontiguousarray(np.concatenate([*self._rows, rows]), dtype=np.float32)
        self._rows = [every]
        self.native.token = None
        _point(self.native, "embd", every)
        return self._place(begin, end, sequence, first, outputs)

    def _place(self, begin: int, end: int, sequence: int, first: int, outputs: int) -> int:
        self._pos[begin:end] = np.arange(first, first + end - begin)
        self._sequence[begin:end] = sequence
        self._output[begin:end] = 0
        self._output[end - outputs : end] = 1
        return end - 1


def _point(native: Any, name: str, array: npt.NDArray[Any]) -> None:
    """Have a pointer of a struct point to an array."""
    kind = dict(native._fields_)[name]
    setattr(native, name, ctypes.cast(array.ctypes.data, kind))
