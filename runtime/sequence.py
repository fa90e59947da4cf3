"""What the one sequence of a context holds, and decoding after it.

Promises that what it remembers is what llama.cpp holds, or that it knows that it is unsure of that;
and that what is kept of earlier calls changes the time an answer takes and never the answer. Used
in the thread that calls llama.cpp alone; checks nothing that a caller gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from ..architecture import ATTENTION_CHUNK
from ..errors import EngineError
from .bindings.batch import SEQUENCE
from .bindings.library import captured_log, refused
from .handles import Handles, SamplerChain

_ABORTED = 2


def reusable_prefix(cached: Sequence[int], tokens: Sequence[int], highest: int) -> int:
    """How many tokens at the beginning of ``tokens`` need not be decoded again.

    At least the last token is always decoded, because its logits are wanted.

    Args:
        cached: the tokens in the KV cache.
        tokens: the tokens that are wanted in the cache.
        highest: the highest position at which llama.cpp was asked to decode since the cache was
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
    """The tokens in the KV cache, and whether the logits after the last one are there.

    ``highest`` is the highest position at which llama.cpp was asked to decode since the cache was
    cleared, -1 for none. ``unsure`` is whether only llama.cpp knows which tokens it holds.
    """

    def __init__(self, handles: Handles) -> None:
        self.tokens: list[int] = []
        self.highest = -1
        self.unsure = False
        self._has_logits = False
        self._handles = handles

    def settle(self) -> None:
        """Be sure again, after a call that failed or was interrupted."""
        if not self.unsure:
            return
        llama, memory = self._handles.llama, self._handles.memory
        held = int(llama.llama_memory_seq_pos_max(memory, SEQUENCE)) + 1
        if held <= 0:
            # The chunked layers may hold nothing where the others still do.
            llama.llama_memory_clear(memory, False)
            self.highest = -1
        self._has_logits = False
        del self.tokens[max(held, 0) :]
        self.unsure = False

    def keep(self, count: int) -> None:
        """Drop all tokens but the first ``count``."""
        if count == len(self.tokens):
            return
        llama, memory = self._handles.llama, self._handles.memory
        self.unsure = True
        self._has_logits = False
        if count:
            llama.llama_memory_seq_rm(memory, SEQUENCE, count, -1)
        else:
            llama.llama_memory_clear(memory, False)
            self.highest = -1
        del self.tokens[count:]
        self.unsure = False

    def extend(self, tokens: Sequence[int]) -> None:
        """Decode tokens that fit, with logits for the last.

        A call that is to stop does so within one operation of ggml's graph on the CPU. On a GPU,
        llama.cpp cannot stop before the end of the current piece of n_batch tokens.
        """
        size = self._handles.n_batch
        for begin in range(0, len(tokens), size):
            if self._handles.thread.stopping:
                return
            is_last = begin + size >= len(tokens)
            self.decode(tokens[begin : begin + size], outputs=int(is_last))

    def decode(self, tokens: Sequence[int], *, outputs: int) -> None:
        """Decode at most n_batch tokens that fit, with logits for the last ``outputs``.

        Raises:
            EngineError: llama.cpp failed; the tokens are not held then.
        """
        handles, first = self._handles, len(self.tokens)
        handles.batch.fill(tokens, first, outputs)
        # From here until llama.cpp has succeeded, only llama.cpp knows which tokens it holds.
        self.unsure = True
        self._has_logits = False
        self.tokens.extend(tokens)
        self.highest = max(self.highest, first + len(tokens) - 1)
        with captured_log() as log:
            status = int(handles.llama.llama_decode(handles.context, handles.batch.native))
            if outputs:
                # A GPU has only been told what to do so far: the time it takes belongs here.
                handles.llama.llama_synchronize(handles.context)
        if status == _ABORTED:
            return
        if status != 0:
            self.settle()
            raise refused(f"{handles.path}: llama.cpp cannot decode (status {status})", log)
        self._has_logits = outputs > 0
        self.unsure = False

    def restored(self, tokens: Sequence[int]) -> None:
        """Remember these tokens, which llama.cpp was given as a state."""
        self.tokens = list(tokens)
        self.highest = len(tokens) - 1
        self.unsure = self._has_logits = False

    def last_logits(self) -> npt.NDArray[np.float32]:
        """The logits after the last token, float32 of [n_vocab]; a view, good until the next call.

        Raises:
            EngineError: no token was decoded last.
        """
        if not self._has_logits:
            raise EngineError("there are no logits: no token was decoded last")
        pointer = self._handles.llama.llama_get_logits_ith(self._handles.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self._handles.n_vocab,))

    def sample(self, chain: SamplerChain) -> int:
        """A token, chosen from the logits after the last one.

        Raises:
            EngineError: no token was decoded last, the logits are NaN, or the chain was freed.
        """
        if not chain.native:
            raise EngineError("a sampler was used after its block had ended")
        # NaN has no order, and llama.cpp's sorting has no defence against it.
        if not math.isfinite(float(self.last_logits().max())):
            raise EngineError(
                f"{self._handles.path}: the model's logits are NaN or infinite",
                hint="The file's weights are damaged: convert the model again.",
            )
        llama, context = self._handles.llama, self._handles.context
        return int(llama.llama_sampler_sample(chain.native, context, -1))

    def output_rows(self, count: int) -> npt.NDArray[np.float32]:
        """The logits of the last ``count`` outputs, float32 of [count, n_vocab]; such a view."""
        pointer = self._handles.llama.llama_get_logits(self._handles.context)
        return np.ctypeslib.as_array(pointer, shape=(count, self._handles.n_vocab))
