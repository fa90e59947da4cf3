"""Rows of a model's token embedding, read from its file as llama.cpp looks them up.

A batch of llama.cpp's has tokens or embeddings. The tokens among a picture's features are handed to
it as embeddings too, so that a prompt is not cut at each of them. Knows nothing of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from .files.model_file import ModelInfo

_NAME = "token_embd.weight"


class TokenEmbedding:
    """The embedding of a model whose file was checked."""

    def __init__(self, model: ModelInfo) -> None:
        self._path, self._tensor = next(
            (part.path, tensor)
            for part in model.parts
            for tensor in part.tensors
            if tensor.name == _NAME
        )
        self._row_bytes = self._tensor.nbytes // model.hparams.n_vocab

    def rows(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The rows of these tokens, float32 of [n_tokens, n_embd].

        Raises:
            EngineError: the file cannot be read any more.
        """
        from gguf import GGMLQuantizationType  # slow to import, and needed for pictures alone
        from gguf.quants import dequantize

        different, places = np.unique(np.asarray(tokens, dtype=np.int64), return_inverse=True)
        try:
            with self._path.open("rb") as file:
                data = b"".join(self._row(file, int(token)) for token in different)
        except OSError as error:
            raise EngineError(
                f"{self._path}: the token embedding cannot be read", found=str(error)
            ) from None
        packed = np.frombuffer(data, np.uint8).reshape(len(different), self._row_bytes)
        unpacked = dequantize(packed, GGMLQuantizationType[self._tensor.type])
        return np.asarray(unpacked, dtype=np.float32)[places]

    def _row(self, file: BinaryIO, token: int) -> bytes:
        file.seek(self._tensor.offset + token * self._row_bytes)
        data = file.read(self._row_bytes)
        if len(data) != self._row_bytes:
            raise OSError("the file is shorter than it was")
        return data
