"""What each sequence of a context holds, and decoding after it, several in one batch.

Promises that what it remembers is what llama.cpp holds, or that it knows that it is unsure of that;
and that what is kept of earlier calls changes the time an answer takes and never the answer. Used
in the thread that calls llama.cpp alone; checks nothing that a caller gave.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterable, Sequence
from itertools import compress
from operator import ne
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..architecture import ATTENTION_CHUNK
from ..errors import EngineError
from .adapters import Scales
from .bindings.candidates import Mask
from .bindings.library import captured_log, refused
from .bindings.sampler import Sampler
from .bindings.steps import Choice
from .features import Features
from .handles import Handles
from .state import Bytes, Checkpoint, SequenceState, for_streams, in_a_ring

logger = logging.getLogger(__name__)

_ABORTED, _INVALID = 2, -1  # what llama_decode returns
_WHOLE, _CHUNKED = 0, 1  # flags of llama_state_seq_get_data_ext (llama.h)


def common_prefix(held: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens are the same at the beginning of both."""
    shorter = min(len(held), len(tokens))
    return next(compress(range(shorter), map(ne, held, tokens)), shorter)


def reusable_prefix(
    held: Sequence[int], tokens: Sequence[int], highest: int, ends: Iterable[int] = ()
) -> int:
    """How many tokens at the beginning of ``tokens`` need not be decoded again.

    At least the last token is always decoded, because its logits are wanted.

    Args:
        held: the tokens of a sequence in the KV cache.
        tokens: the tokens that are wanted there.
        highest, ends: see `rewound`.
    """
    common = min(common_prefix(held, tokens), max(len(tokens) - 1, 0))
    # Nothing is dropped: what follows the tokens that are held finds all it attends to.
    return common if common == len(held) else rewound(common, highest, ends)


def rewound(count: int, highest: int, ends: Iterable[int] = ()) -> int:
    """The longest beginning of a sequence, ``count`` tokens at most, that it can go on from.

    The full layers keep every cell, and ``llama_memory_seq_rm`` drops those from a position on. The
    chunked layers have cells for one chunk and one ubatch only (llama-kv-cache-iswa.cpp sets the
    size). A position attends to those of its own chunk, from the chunk's beginning to itself
    (``is_masked_swa`` in llama-hparams.h). So it is these cells that have to be there, for which
    there are three ways:

    1. The position is in the chunk of ``highest``. A cell is overwritten only when it lies in an
       earlier chunk than the position that is decoded next (``find_slot`` in llama-kv-cache.cpp,
       ``apply_ubatch`` drops what is before such a cell too), and no position beyond that chunk
       was decoded since its cells were: all are there.
    2. A checkpoint was taken when the sequence ended in the position's chunk, at this position or
       behind it: it has these cells, and what it has from the position on is dropped.
    3. The position is the first of its chunk, and there are no such cells.

    The first is found for the last tokens, the second where a checkpoint is, the third always.

    Args:
        highest: the highest position that was decoded, or tried in vain; see `CachedSequence`.
        ends: how many tokens there were when each of the checkpoints was taken.
    """
    chunk = count // ATTENTION_CHUNK
    is_there = chunk == highest // ATTENTION_CHUNK or any(
        chunk == (end - 1) // ATTENTION_CHUNK and count <= end for end in ends
    )
    return count if is_there else chunk * ATTENTION_CHUNK


class CachedSequence:
    """The tokens of one sequence in the KV cache, and whether the logits after them are there.

    Each sequence has cells of its own: what happens to one leaves the others alone.

    ``highest`` is the highest position at which llama.cpp was asked to decode since the cells of
    its chunk are there without a gap, -1 for none: every position of this chunk can be gone on
    from. ``checkpoints`` have the cells of earlier chunks, in the order of their ends. ``unsure``
    is whether only llama.cpp knows which tokens it holds. ``adapters`` are the scales with which
    they were read, and those that follow are.

    Args:
        number: llama.cpp's, from 0.
    """

    def __init__(self, handles: Handles, number: int = 0) -> None:
        self.number = number
        self.tokens: list[int] = []
        self.highest = -1
        self.checkpoints: list[Checkpoint] = []
        self.unsure = False
        self.adapters = handles.no_scales
        self._handles = handles
        self._sure = 0  # tokens that are held for certain while it is unsure
        # The batch that the logits after the last token are of, and its token there.
        self._batch, self._row = -1, -1
        self._draft: Sequence[int] = ()

    @property
    def ends(self) -> list[int]:
        """How many tokens there were when each checkpoint was taken that can be used now."""
        # What is written now would be lost when the cells of another sequence are copied here.
        usable = () if self._handles.is_copying else self.checkpoints
        return [checkpoint.n_tokens for checkpoint in usable]

    def reusable(self, tokens: Sequence[int], adapters: Scales) -> int:
        """How many of the first tokens need not be decoded again; see `reusable_prefix`.

        Args:
            adapters: with which they would be: what others have read is of no use.
        """
        if adapters != self.adapters:
            return 0
        return reusable_prefix(self.tokens, tokens, self.highest, self.ends)

    def keep_of(self, tokens: Sequence[int], adapters: Scales) -> int:
        """Drop all that these tokens do not begin with, and go on with these adapters.

        Returns:
            How many are held then.
        """
        count = self.keep(self.reusable(tokens, adapters))
        self.adapters = adapters
        return count

    def settle(self) -> None:
        """Be sure again, after a call that failed or was interrupted."""
        if not self.unsure:
            return
        # llama.cpp tells of the chunked layers, which hold the positions before the highest one
        # without a gap. They hold nothing where nothing of a new chunk was decoded and all cells of
        # the one before were overwritten, or were dropped: the full layers have the first tokens.
        held = self._highest_held() + 1
        if not held and self._sure % ATTENTION_CHUNK == 0:
            held = self._sure
        if not held:
            self._clear()
        del self.tokens[held:]
        # The ubatch that failed began here, and has overwritten nothing of this chunk.
        self.highest = min(self.highest, held)
        self.unsure = False

    def keep(self, count: int) -> int:
        """Drop all tokens but the first ``count``, or some more if it cannot go on from there.

        Returns:
            How many are held then; see `rewound`.
        """
        if count == len(self.tokens):
            return count
        self._batch = -1
        count = rewound(count, self.highest, self.ends)
        if not count:
            self._clear()
            return 0
        self.unsure, self._sure = True, count
        self._drop(count)
        if count // ATTENTION_CHUNK != self.highest // ATTENTION_CHUNK:
            if count % ATTENTION_CHUNK:
                count = self._use_checkpoint(count)
            self.highest = count
        self.checkpoints = [one for one in self.checkpoints if one.n_tokens <= count]
        del self.tokens[count:]
        self.unsure = False
        return count

    def _use_checkpoint(self, count: int) -> int:
        """Have the chunked layers hold what is before a position; how many can be gone on from."""
        later = next(one for one in self.checkpoints if one.n_tokens >= count)
        try:
            self._write(later.data, _CHUNKED)
        except (EngineError, MemoryError) as error:
            logger.warning("a checkpoint is not used: %s", error)
            self.checkpoints.remove(later)
            count = count // ATTENTION_CHUNK * ATTENTION_CHUNK
        self._drop(count)
        return count

    def copy(self, source: CachedSequence) -> None:
        """Hold what another sequence holds; all of its cells are copied before the next batch."""
        self._clear()
        llama, memory = self._handles.llama, self._handles.memory
        self._handles.is_copying = True
        llama.llama_memory_seq_cp(memory, source.number, self.number, -1, -1)
        self.tokens = list(source.tokens)
        self.adapters = source.adapters
        self.highest = source.highest
        self.checkpoints = list(source.checkpoints)

    def _highest_held(self) -> int:
        llama, memory = self._handles.llama, self._handles.memory
        return int(llama.llama_memory_seq_pos_max(memory, self.number))

    def _drop(self, begin: int) -> None:
        """Have llama.cpp drop the cells of the positions from ``begin`` on."""
        llama, memory = self._handles.llama, self._handles.memory
        llama.llama_memory_seq_rm(memory, self.number, begin, -1)

    def _clear(self) -> None:
        self._batch = -1
        llama, memory = self._handles.llama, self._handles.memory
        if self._handles.n_parallel == 1:
            # The cells are filled from the first one on then, as in a context that is new.
            llama.llama_memory_clear(memory, False)
        else:
            llama.llama_memory_seq_rm(memory, self.number, -1, -1)
        self.tokens = []
        self.checkpoints = []
        self.highest = -1
        self.unsure = False

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
        self.unsure, self._sure = True, len(self.tokens)
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
        all it attends to, as in `rewound`.
        """
        if self._draft:
            self._draft = ()
            self._drop(len(self.tokens))

    def nbytes(self) -> int:
        """The size of its state, in bytes, checkpoints not among them."""
        return self._size(_WHOLE)

    def nbytes_chunked(self) -> int:
        """The size of a checkpoint that is taken now, in bytes."""
        return self._size(_CHUNKED)

    def state(self) -> SequenceState | None:
        """What it holds, copied; None where that is nothing, or is not there yet."""
        if self.unsure or not self.tokens or self._handles.is_copying:
            return None
        checkpoints = tuple(self.checkpoints)
        return SequenceState(tuple(self.tokens), self._read(_WHOLE), checkpoints, self.adapters)

    def take_checkpoint(self) -> None:
        """Copy what the chunked layers hold, which is to be gone on from later."""
        self.checkpoints.append(Checkpoint(len(self.tokens), self._read(_CHUNKED)))

    def restore(self, state: SequenceState) -> None:
        """Hold what a state has, instead of what it holds now.

        Raises:
            EngineError: llama.cpp refuses it, as one of another model; nothing is held then.
        """
        self._clear()
        try:
            self._write(state.data, _WHOLE)
            handles = self._handles
            ring = in_a_ring(state.data, handles.n_chunked_cells, handles.n_parallel)
            if ring is not None:
                self._write(ring, _CHUNKED)
                self._drop(len(state.tokens))
        except EngineError:
            self._clear()
            raise
        self.tokens = list(state.tokens)
        self.adapters = state.adapters
        self.checkpoints = list(state.checkpoints)
        self.highest = state.highest

    def _size(self, flags: int) -> int:
        llama, context = self._handles.llama, self._handles.context
        return int(llama.llama_state_seq_get_size_ext(context, self.number, flags))

    def _read(self, flags: int) -> Bytes:
        """What it holds, in llama.cpp's bytes."""
        data = np.empty(self._size(flags), np.uint8)
        get_data = self._handles.llama.llama_state_seq_get_data_ext
        with captured_log() as log:
            size = get_data(self._handles.context, _pointer(data), data.nbytes, self.number, flags)
        if size != data.nbytes:
            raise refused(f"{self._handles.path}: llama.cpp cannot save a sequence", log)
        return data

    def _write(self, data: Bytes, flags: int) -> None:
        """Have llama.cpp hold what these bytes say."""
        if self._handles.is_copying:  # what is copied before the next batch would come over it
            raise EngineError("a sequence cannot be restored before the next batch was decoded")
        data = for_streams(data, self._handles.n_parallel, whole=flags == _WHOLE)
        set_data = self._handles.llama.llama_state_seq_set_data_ext
        with captured_log() as log:
            size = set_data(self._handles.context, _pointer(data), data.nbytes, self.number, flags)
        if size != data.nbytes:
            raise EngineError(
                f"{self._handles.path}: the state of a sequence is not of this model, or of other "
                "types of the KV cache",
                found=next(iter(log.errors), None),
            )

    def last_logits(self, before: int = 0) -> npt.NDArray[np.float32]:
        """The logits after the last token, float32 of [n_vocab]; a view, good until the next call.

        Args:
            before: of which token instead, counted from the last one, of those with logits.

        Raises:
            EngineError: no token of this sequence was decoded last.
        """
        if self._batch != self._handles.n_decoded or self._row < 0:
            raise EngineError("there are no logits: no token was decoded last")
        return self._handles.logits(self._row - before)

    def damaged(self) -> EngineError:
        """The error where logits are NaN, or the largest is infinite."""
        hint = "The file's weights are damaged: convert the model again."
        if any(self.adapters):
            hint = "An adapter's scale may be far too large, or its file be damaged."
        return EngineError(
            f"{self._handles.path}: the model's logits are NaN or infinite", hint=hint
        )

    def sample(self, sampler: Sampler, mask: Mask | None = None) -> int:
        """A token, chosen from the logits after the last one.

        Args:
            mask: the tokens that may be chosen.

        Raises:
            EngineError: no token was decoded last, the logits are NaN, none that the mask allows
                is possible, or the sampler was freed.
        """
        if sampler.closed:
            raise EngineError("a sampler was used after its block had ended")
        logits = self.last_logits()
        token = sampler.choose(logits, mask)
        if token is None:
            if mask is not None and np.isfinite(logits.max()):
                raise EngineError(
                    "the constraint allows no token that is possible here",
                    hint="Nothing can follow what was chosen, or logit_bias forbids what could.",
                )
            raise self.damaged()
        return token

    def output_rows(self, count: int) -> npt.NDArray[np.float32]:
        """The logits of the last ``count`` outputs, float32 of [count, n_vocab]; such a view."""
        pointer = self._handles.llama.llama_get_logits(self._handles.context)
        return np.ctypeslib.as_array(pointer, shape=(count, self._handles.n_vocab))


def _pointer(data: Bytes) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_ubyte))


class Piece(NamedTuple):
    """Tokens to decode after those that a sequence holds; the last ``outputs`` return logits.

    Where there are names of features among them, ``rows`` are these and the embeddings of the
    others, float32 of [n_tokens, n_embd].
    The last ``drafted`` of them, for which there are logits too, are not held before they are
    confirmed.
    """

    sequence: CachedSequence
    tokens: Sequence[int]
    outputs: int
    rows: npt.NDArray[np.float32] | None = None
    drafted: int = 0


def with_rows(piece: Piece, features: Features | None) -> Piece:
    """The piece with its rows, if it names any."""
    if features is None or min(piece.tokens) >= 0:
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
    handles.use_adapters(pieces[0].sequence.adapters)
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
    handles.is_copying = False
    each: list[list[int]] = taken.tokens.T.tolist()
    for row, (piece, chosen) in enumerate(zip(pieces, each, strict=True)):
        piece.sequence.begin([*piece.tokens, *chosen][: taken.n_decoded + taken.failed])
        if not taken.failed:
            piece.sequence.end(row)
    return each


def decode(handles: Handles, pieces: Sequence[Piece]) -> bool:
    """Decode at most n_batch tokens that fit, of sequences in the order of their numbers.

    All pieces have rows, or none has; all are of sequences with the same adapters.

    Returns:
        Whether that was done; it was aborted otherwise, and the sequences are unsure.

    Raises:
        EngineError: llama.cpp failed; what it did before that is held, without logits.
    """
    handles.use_adapters(pieces[0].sequence.adapters)
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
    if status != _INVALID:
        handles.is_copying = False
    if status != 0 and handles.activations is not None:
        handles.activations.spoil()
    if status == _ABORTED:
        return False
    if status != 0:
        for piece in pieces:
            piece.sequence.settle()
        raise refused(f"{handles.path}: llama.cpp cannot decode (status {status})", log)
    for piece, row in zip(pieces, rows, strict=True):
        piece.sequence.end(row, piece.drafted)
    return True
