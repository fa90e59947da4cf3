"""What each sequence of a context holds, and decoding after it, several in one batch.

Promises that what it remembers is what llama.cpp holds, or that it knows that it is unsure of that;
and that what is kept of earlier calls changes the time an answer takes and never the answer. Used
in the thread that calls llama.cpp alone; checks nothing that a caller gave.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..architecture import ATTENTION_CHUNK
from ..errors import EngineError
from .bindings.library import captured_log, refused
from .bindings.sampler import Sampler
from .bindings.steps import Choice
from .features import Features
from .handles import Handles
from .state import Bytes, SequenceState, for_streams

_ABORTED = 2
_WHOLE = 0  # flags of llama_state_seq_get_data_ext (llama.h)


def reusable_prefix(cached: Sequence[int], tokens: Sequence[int], highest: int) -> int:
    """How many tokens at the beginning of ``tokens`` need not be decoded again.

    At least the last token is always decoded, because its logits are wanted.

    Args:
        cached: the tokens of a sequence in the KV cache.
        tokens: the tokens that are wanted there.
        highest: the highest position at which llama.cpp was asked to decode since the sequence was
            cleared, whether that succeeded or not; -1 for none.
    """
    pairs = zip(cached, tokens[:-1], strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    # Nothing is dropped: what follows the cached tokens finds all it attends to.
    if common == len(cached):
        return common
    # The chunked layers have a cache for one chunk and one ubatch only. A cell is overwritten as
    # soon as it lies in an earlier chunk than the next position (llama_kv_cache::find_slot with
    # is_masked_swa; llama-kv-cache-iswa.cpp sets the size). So all cells of the chunk of `highest`
    # are there, and of earlier chunks any may be gone, without llama_memory_seq_rm saying so.
    # Position `common` attends to its own chunk from its beginning: that has to be the same one.
    return common if common // ATTENTION_CHUNK == highest // ATTENTION_CHUNK else 0


class CachedSequence:
    """The tokens of one sequence in the KV cache, and whether the logits after them are there.

    Each sequence has cells of its own: what happens to one leaves the others alone.

    ``highest`` is the highest position at which llama.cpp was asked to decode since the sequence
    was cleared, -1 for none. ``unsure`` is whether only llama.cpp knows which tokens it holds.

    Args:
        number: llama.cpp's, from 0.
    """

    def __init__(self, handles: Handles, number: int = 0) -> None:
        self.number = number
        self.tokens: list[int] = []
        self.highest = -1
        self.unsure = False
        self._handles = handles
        # The batch that the logits after the last token are of, and its token there.
        self._batch, self._row = -1, -1
        self._draft: Sequence[int] = ()

    def settle(self) -> None:
        """Be sure again, after a call that failed or was interrupted."""
        if not self.unsure:
            return
        llama, memory = self._handles.llama, self._handles.memory
        held = int(llama.llama_memory_seq_pos_max(memory, self.number)) + 1
        if held <= 0:
            # The chunked layers may hold nothing where the others still do.
            self._clear()
        del self.tokens[max(held, 0) :]
        self.unsure = False

    def keep(self, count: int) -> None:
        """Drop all tokens but the first ``count``."""
        if count == len(self.tokens):
            return
        self.unsure = True
        self._batch = -1
        if count:
            llama, memory = self._handles.llama, self._handles.memory
            llama.llama_memory_seq_rm(memory, self.number, count, -1)
        else:
            self._clear()
        del self.tokens[count:]
        self.unsure = False

    def copy(self, source: CachedSequence) -> None:
        """Hold what another sequence holds; all of its cells are copied before the next batch."""
        self.unsure = True
        self._batch = -1
        llama, memory = self._handles.llama, self._handles.memory
        self._clear()
        llama.llama_memory_seq_cp(memory, source.number, self.number, -1, -1)
        self.tokens = list(source.tokens)
        self.highest = source.highest
        self.unsure = False

    def _clear(self) -> None:
        llama, memory = self._handles.llama, self._handles.memory
        if self._handles.n_parallel == 1:
            # The cells are filled from the first one on then, as in a context that is new.
            llama.llama_memory_clear(memory, False)
        else:
            llama.llama_memory_seq_rm(memory, self.number, -1, -1)
        self.highest = -1

    def extend(self, tokens: Sequence[int]) -> None:
        """Decode tokens that fit, with logits for the last.

        A call that is to stop does so within one operation of ggml's graph on the CPU. On a GPU,
        llama.cpp cannot stop before the end of the current piece of n_batch tokens.
        """
        start, thread = len(self.tokens), self._handles.thread
        is_done = False
        while not is_done and not thread.stopping:
            # An abort that was meant for an earlier batch can hit this one: the rest is decoded.
            thread.rearm()
            self.settle()
            rest = tokens[len(self.tokens) - start :]
            if not rest:
                self.keep(len(self.tokens) - 1)
                rest = tokens[-1:]
            piece = rest[: self._handles.n_batch]
            is_last = len(piece) == len(rest)
            is_done = decode(self._handles, [Piece(self, piece, int(is_last))]) and is_last

    def begin(self, tokens: Sequence[int]) -> None:
        """Only llama.cpp knows from here on which of these tokens it holds after the others."""
        self.unsure = True
        self._batch = -1
        self.tokens.extend(tokens)
        self.highest = max(self.highest, len(self.tokens) - 1)

    def end(self, row: int, n_drafted: int = 0) -> None:
        """They are held, with the logits after the last one at this token of the batch or -1.

        Args:
            n_drafted: how many of the last ones are only held once they are confirmed. The logits
                are those after the one before them, until then.
        """
        self.unsure = False
        self._batch, self._row = self._handles.n_decoded, row - n_drafted
        count = len(self.tokens) - n_drafted
        self._draft = self.tokens[count:]
        del self.tokens[count:]

    def confirm(self, token: int) -> bool:
        """Whether this token was drafted next: then it is held, with the logits after it."""
        if not self._draft or self._draft[0] != token:
            return False
        self.tokens.append(token)
        self._draft = self._draft[1:]
        self._row += 1
        return True

    def drop_draft(self) -> None:
        """Hold nothing of what was drafted and not confirmed.

        A draft lies in one chunk with the token before it, so that what follows that token finds
        all it attends to, as in `reusable_prefix`.
        """
        if self._draft:
            self._draft = ()
            self.unsure = True
            llama, memory = self._handles.llama, self._handles.memory
            llama.llama_memory_seq_rm(memory, self.number, len(self.tokens), -1)
            self.unsure = False

    def state(self) -> SequenceState | None:
        """What it holds, copied; None where that is nothing, or only llama.cpp knows."""
        if self.unsure or not self.tokens:
            return None
        data = np.empty(self._size(_WHOLE), np.uint8)
        self._read(data, _WHOLE)
        return SequenceState(tuple(self.tokens), data)

    def restore(self, state: SequenceState) -> None:
        """Hold what a state has, instead of what it holds now.

        Raises:
            EngineError: llama.cpp refuses it, as one of another model; nothing is held then.
        """
        self.keep(0)
        self.unsure = True
        self._write(state.data, _WHOLE)
        self.tokens = list(state.tokens)
        # Where cells of the last chunk are missing, only the next one can be gone on with.
        self.highest = len(self.tokens) - int(state.is_complete)
        self.unsure = False

    def _size(self, flags: int) -> int:
        llama, context = self._handles.llama, self._handles.context
        return int(llama.llama_state_seq_get_size_ext(context, self.number, flags))

    def _read(self, data: Bytes, flags: int) -> None:
        """Have llama.cpp write what it holds."""
        get_data = self._handles.llama.llama_state_seq_get_data_ext
        with captured_log() as log:
            size = get_data(self._handles.context, _pointer(data), data.nbytes, self.number, flags)
        if size != data.nbytes:
            raise refused(f"{self._handles.path}: llama.cpp cannot save a sequence", log)

    def _write(self, data: Bytes, flags: int) -> None:
        """Have llama.cpp take what was held."""
        data = for_streams(data, self._handles.n_parallel, whole=flags == _WHOLE)
        set_data = self._handles.llama.llama_state_seq_set_data_ext
        with captured_log() as log:
            size = set_data(self._handles.context, _pointer(data), data.nbytes, self.number, flags)
        if size != data.nbytes:
            self._clear()
            self.tokens = []
            self.unsure = False
            raise EngineError(
                f"{self._handles.path}: the state of a sequence is not of this model, or of other "
                "types of the KV cache",
                found=next(iter(log.errors), None),
            )

    def last_logits(self) -> npt.NDArray[np.float32]:
        """The logits after the last token, float32 of [n_vocab]; a view, good until the next call.

        Raises:
            EngineError: no token of this sequence was decoded last.
        """
        if self._batch != self._handles.n_decoded or self._row < 0:
            raise EngineError("there are no logits: no token was decoded last")
        return self._handles.logits(self._row)

    def sample(self, sampler: Sampler) -> int:
        """A token, chosen from the logits after the last one.

        Raises:
            EngineError: no token was decoded last, the logits are NaN, or the sampler was freed.
        """
        if sampler.closed:
            raise EngineError("a sampler was used after its block had ended")
        token = sampler.choose(self.last_logits())
        if token is None:
            raise EngineError(
                f"{self._handles.path}: the model's logits are NaN or infinite",
                hint="The file's weights are damaged: convert the model again.",
            )
        return token

    def output_rows(self, count: int) -> npt.NDArray[np.float32]:
        """The logits of the last ``count`` outputs, float32 of [count, n_vocab]; such a view."""
        pointer = self._handles.llama.llama_get_logits(self._handles.context)
        return np.ctypeslib.as_array(pointer, shape=(count, self._handles.n_vocab))


def _pointer(data: Bytes) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_ubyte))


class Piece(NamedTuple):
    """Tokens to decode after those that a sequence holds; the last ``outputs`` return logits.

    Where they are names of features, ``rows`` are these, float32 of [n_tokens, n_embd].
    The last ``drafted`` of them, for which there are logits too, are not held before they are
    confirmed.
    """

    sequence: CachedSequence
    tokens: Sequence[int]
    outputs: int
    rows: npt.NDArray[np.float32] | None = None
    drafted: int = 0


def with_rows(piece: Piece, features: Features | None) -> Piece:
    """The piece with the rows that it names, if it names any."""
    if features is None or piece.tokens[0] >= 0:
        return piece
    return piece._replace(rows=features.rows(piece.tokens))


def take_steps(
    handles: Handles, pieces: Sequence[Piece], choices: Sequence[Choice], most: int, seconds: float
) -> Sequence[Sequence[int]] | None:
    """Decode pieces of one token each, choose the next of each, and go on with these.

    Returns:
        The tokens that were chosen, of each sequence as many, and all but the last of them held.
        Where decoding failed there are only those before, none perhaps, and the sequences are
        unsure. None where this cannot be done.
    """
    batch = handles.batch
    batch.clear()
    for sequence, tokens, outputs, _, _ in pieces:
        batch.add(tokens, sequence.number, len(sequence.tokens), outputs)
        sequence.unsure = True
    with captured_log():
        taken = handles.steps.take(batch, choices, most, seconds)
    if taken is None:
        for piece in pieces:
            piece.sequence.unsure = False
        return None
    handles.n_decoded += taken.n_decoded
    each: list[list[int]] = taken.tokens.T.tolist()
    for row, (piece, chosen) in enumerate(zip(pieces, each, strict=True)):
        piece.sequence.begin([*piece.tokens, *chosen][: taken.n_decoded + taken.failed])
        if not taken.failed:
            piece.sequence.end(row)
    return each


def decode(handles: Handles, pieces: Sequence[Piece]) -> bool:
    """Decode at most n_batch tokens that fit, of sequences in the order of their numbers.

    All of them are ids of tokens, or all of them names of features.

    Returns:
        Whether that was done; it was aborted otherwise, and the sequences are unsure.

    Raises:
        EngineError: llama.cpp failed; what it did before that is held, without logits.
    """
    batch = handles.batch
    batch.clear()
    rows = []
    n_outputs = 0
    for sequence, tokens, outputs, features, _ in pieces:
        place = sequence.number, len(sequence.tokens), outputs
        row = batch.add(tokens, *place) if features is None else batch.add_rows(features, *place)
        rows.append(row if outputs else -1)
        n_outputs += outputs
        sequence.begin(tokens)
    handles.n_decoded += 1
    with captured_log() as log:
        status = int(handles.llama.llama_decode(handles.context, batch.native))
        if n_outputs:
            # A GPU has only been told what to do so far: the time it takes belongs here.
            handles.llama.llama_synchronize(handles.context)
    if status == _ABORTED:
        return False
    if status != 0:
        for piece in pieces:
            piece.sequence.settle()
        raise refused(f"{handles.path}: llama.cpp cannot decode (status {status})", log)
    for piece, row in zip(pieces, rows, strict=True):
        piece.sequence.end(row, piece.drafted)
    return True
