"""What is asked of an engine: a prompt to go on with, and how far that has come.

Knows nothing of text, or of others who ask.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from ..architecture import ATTENTION_CHUNK
from .adapters import Scales
from .bindings.sampler import Sampler
from .bindings.steps import Choice
from .bindings.thread import News
from .constraint import Constraint
from .drafts import Drafter
from .features import Features, names_in
from .logprobs import TokenLogprobs
from .sampling import Sampling
from .sequence import CachedSequence, Piece

Outcome = Literal["stop", "length"]
"""Why a request ended by itself: its tokens were not wanted any more, or ``max_tokens`` or the
context was full."""

RUN_AHEAD = 128
"""How many tokens a request is ahead of its reader at most."""


class Request:
    """A prompt to go on with, or (without ``accept``) a sequence for whoever asks for one.

    Args:
        prompt: checked token ids, and names of features, that fit into a sequence.
        sampling: how tokens are chosen.
        max_tokens: of the answer; None is as many as fit.
        accept: called in the engine's thread with each token that was chosen, and with whether it
            is one that ends an answer; returns whether to go on. It must not call the engine.
        paced: whether it waits for its reader every `RUN_AHEAD` tokens.
        after: a request whose prompt is to be read first, because it begins like this one.
        features: makes those that the prompt names.
        goes_on: whether it waits for ``Scheduler.resume`` where its sequence is full, and does not
            end there.
        drafts: whether to decode what is likely to follow with a token, where that is faster.
        ignores_ends: whether tokens that end an answer are like all others.
        constraint: what may be chosen; of this request alone.
        n_logprobs: how many of the likeliest tokens ``logprobs`` have for each that was chosen;
            None keeps none of it.
        adapters: how much of each loaded adapter the model has for it.

    ``text`` are the tokens of the prompt and those that were chosen. ``sequence`` is where it is
    decoded, None before that and after its end. ``ended`` is whether it has ended; then ``outcome``
    says why, and is None where it was cancelled or an ``error`` ended it. Seconds are those of the
    batches that it was a part of. ``is_full`` is whether its sequence is; ``reread_tokens``
    were decoded for a prompt that it went on after. Of ``drafted_tokens``, ``accepted_tokens`` were
    chosen. ``logprobs`` are those of the tokens that were chosen, in their order.
    """

    def __init__(
        self,
        prompt: Sequence[int] = (),
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        accept: Callable[[int, bool], bool] | None = None,
        *,
        paced: bool = True,
        after: Request | None = None,
        features: Features | None = None,
        goes_on: bool = False,
        drafts: bool = False,
        ignores_ends: bool = False,
        constraint: Constraint | None = None,
        n_logprobs: int | None = None,
        adapters: Scales = (),
    ) -> None:
        self.adapters = adapters
        self.text = list(prompt)
        self.n_prompt = len(self.text)
        self.features = features
        self.sampling = sampling or Sampling()
        self.max_tokens = max_tokens
        self.accept = accept
        self.paced = paced
        self.after = after
        self.goes_on = goes_on
        self.ignores_ends = ignores_ends
        self.constraint = constraint
        self.n_logprobs = n_logprobs
        self.logprobs: list[TokenLogprobs] = []  # there before the token itself is
        self.is_full = self.resumed = False
        self.is_held_up = False  # the engine passed it over; see `holds_up`
        self.next_prompt: Sequence[int] | None = None  # after which it is resumed; None ends it
        self.n_before = 0  # tokens of the answer when it was resumed last
        self.sequence: CachedSequence | None = None
        self.begun = 0  # its place among all that have begun
        self.drafter = Drafter(self.text) if drafts else None
        self.drafted_tokens = self.accepted_tokens = 0
        self.reused_tokens = self.reread_tokens = 0
        self.prefill_seconds = self.decode_seconds = 0.0
        self.ended = self.cancelled = False
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.sampler: Sampler | None = None
        # Who reads it, and since which wait for it: who waits for one reads no other meanwhile.
        self.awaited = 0
        thread = threading.current_thread()
        self.owned_by(thread, thread.is_alive)
        self._taken = 0
        self.news: News = queue.SimpleQueue()
        self.notify: Callable[[], object] = lambda: self.news.put(None)
        self.notified_at = 0.0

    def owned_by(self, owner: object, is_alive: Callable[[], bool]) -> None:
        """Who reads the tokens, and whether they still can: a thread, or a task."""
        self.owner, self.owner_is_alive = owner, is_alive

    @property
    def decodes(self) -> bool:
        """Whether it is to be decoded, and is no sequence for somebody else."""
        return self.accept is not None

    @property
    def reusable(self) -> Sequence[int]:
        """The tokens that are not decoded again where a sequence holds them."""
        return self.text

    @property
    def n_chosen(self) -> int:
        """Tokens of the answer so far."""
        return len(self.text) - self.n_prompt

    @property
    def unread(self) -> int:
        """Tokens that its reader has not taken yet."""
        return len(self.text) - self.n_prompt - self._taken

    @property
    def is_paused(self) -> bool:
        """Whether it does not go on before its reader does."""
        return self.is_full or (self.paced and self.unread >= RUN_AHEAD)

    def holds_up(self) -> bool:
        """In the engine's thread: whether it is paused, and its reader is to say when it goes on.

        A reader takes what is there and then looks whether it is held up: noted before it is looked
        at once more, it is seen by one of both.
        """
        self.is_held_up = self.is_paused
        if self.is_held_up:
            self.is_held_up = self.is_paused
        return self.is_held_up

    @property
    def waits_to_be_resumed(self) -> bool:
        """Whether its reader is to say after which prompt it goes on."""
        return not self.resumed and self.is_full  # in this order: the engine's thread goes on

    @property
    def is_read(self) -> bool:
        """Whether its prompt was read, or will never be."""
        return self.n_chosen > 0 or self.ended

    def take(self, count: int | None = None) -> None:
        """Count this many tokens as read, or all that there are."""
        self._taken = self.n_chosen if count is None else max(self._taken, count)

    @property
    def answers(self) -> bool:
        """Whether its prompt is read."""
        return self.n_chosen > self.n_before

    # --- in the engine's thread, while it has a sequence

    @property
    def held(self) -> CachedSequence:
        """Its sequence, which it has."""
        assert self.sequence is not None
        return self.sequence

    def go_on(self, prompt: Sequence[int]) -> None:
        """Be an answer to another prompt, and not full any more."""
        self.n_before = self.n_chosen
        self.text = [*prompt, *self.text[self.n_prompt :]]
        self.n_prompt = len(prompt)
        if self.drafter is not None:
            self.drafter = Drafter(self.text)
        self.is_full = False
        self.resumed = False

    def missing(self) -> int:
        """How many of its tokens are to be decoded, at least one."""
        sequence = self.held
        sequence.settle()
        count = len(self.text) - len(sequence.tokens)
        if count <= 0:
            # All are held, and a part of a draft, but what was to bring the logits was aborted.
            sequence.keep(len(self.text) - 1)
        return max(count, 1)

    def piece(self, count: int) -> Piece:
        """Its next tokens, or features, with logits if they are the last."""
        begin = len(self.held.tokens)
        # A batch ends where a chunk does: only then do the chunked layers hold all of it for sure.
        end = min(begin + count, begin - begin % ATTENTION_CHUNK + ATTENTION_CHUNK)
        return Piece(self.held, self.text[begin:end], int(end == len(self.text)))

    def choice(self, piece: Piece) -> Choice | None:
        """How its next tokens are chosen; None where each is to be looked at before the next."""
        if self.sampler is None or not self.answers:
            return None
        if self.constraint is not None or self.n_logprobs is not None:
            return None
        if not len(piece.tokens) == piece.outputs == 1 or (choice := self.sampler.choice) is None:
            return None
        choice.ends = not self.ignores_ends
        return choice

    def next_names(self, most: int) -> list[int]:
        """The names of features that it goes on with, at most so many."""
        if self.features is None or self.sequence is None or self.answers:
            return []
        begin = min(len(self.sequence.tokens), self.n_prompt - 1)
        return names_in(self.text[begin : min(begin + most, self.n_prompt)])
