"""All the logits of a prompt, a piece after the other, as many rows as one call may return.

Promises that a piece which was given up is decoded again. Knows nothing of who asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .features import Features
from .handles import Handles
from .request import Request
from .sequence import Piece, decode, with_rows

TakeEach = Callable[[int, npt.NDArray[np.float32]], None]
"""Called with the number of a prompt and the logits after each of its tokens, a view."""

TakeRows = Callable[[int, npt.NDArray[np.float32]], None]
"""Called with the place of a token and the logits after it and those that follow it, a view."""


def pieces_of(count: int, n_last: int, n_outputs: int, n_batch: int) -> list[tuple[int, int]]:
    """How a prompt of `count` tokens is cut, the last ``n_last`` of which have their logits.

    Args:
        n_outputs: rows of logits that a piece may have.
        n_batch: tokens that a piece may have.
    """
    first = count - n_last
    # A short piece comes first: where fewer than 64 tokens are decoded, ggml's attention
    # on the CPU sums in f16 (ops.cpp, ggml_compute_forward_flash_attn_ext), which costs
    # accuracy where many keys are attended to, and the first piece has few.
    short = n_last % n_outputs or min(n_outputs, n_last)
    ends = [first + end for end in range(short, n_last + 1, n_outputs)]
    # What comes before them is decoded along with the first, as far as that is one call.
    unread = max(ends[0] - n_batch, 0)
    return list(pairwise([*range(0, unread, n_batch), unread, *ends]))


def each_rows(
    handles: Handles,
    request: Request,
    prompt: Sequence[int],
    pieces: Sequence[tuple[int, int]],
    n_last: int,
    features: Features | None,
    take: TakeRows,
) -> None:
    """Decode a prompt in the sequence that a request has, and hand its logits on as they come.

    Raises:
        EngineError: llama.cpp failed, or what ended the request.
    """
    first = len(prompt) - n_last

    def rows(begin: int, end: int) -> bool:
        """Whether those from ``begin`` on are there; not where they have to come anew."""
        handles.thread.rearm()
        if (sequence := request.sequence) is None:
            return True
        sequence.settle()
        sequence.keep(begin)
        wanted = max(end - max(begin, first), 0)
        piece = with_rows(Piece(sequence, prompt[begin:end], wanted), features)
        if not decode(handles, [piece]):
            return False  # an abort that was meant for an earlier batch hit this one
        if wanted:
            take(end - wanted, sequence.output_rows(wanted))
        return True

    while not all(handles.thread.call(partial(rows, *piece)) for piece in pieces):
        pass
    if request.error is not None:
        raise request.error


def rows_of_each(
    handles: Handles,
    requests: Sequence[Request],
    prompts: Sequence[Sequence[int]],
    take: TakeEach,
) -> None:
    """Decode several prompts in one batch, each in the sequence that its request has.

    Raises:
        EngineError: llama.cpp failed, or what ended a request.
    """

    def rows() -> bool:
        handles.thread.rearm()
        pieces = {}
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            if (sequence := request.sequence) is None:
                return True
            sequence.settle()
            sequence.keep(0)
            pieces[number] = Piece(sequence, prompt, len(prompt))
        # In the order of the sequences, as `decode` wants them.
        order = sorted(pieces, key=lambda number: pieces[number].sequence.number)
        if not decode(handles, [pieces[number] for number in order]):
            return False  # an abort that was meant for an earlier batch hit this one
        every = pieces[order[0]].sequence.output_rows(sum(map(len, prompts)))
        for number in order:
            count = len(prompts[number])
            take(number, every[:count])
            every = every[count:]
        return True

    while not handles.thread.call(rows):
        pass
    for request in requests:
        if request.error is not None:
            raise request.error
