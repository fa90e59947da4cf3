"""Requests in, tokens out: the sequences of a context, shared among all who ask.

Each turn decodes one batch: a token of every sequence that answers, and as much of the prompts that
are being read as fits into a ubatch, each getting a fair share. Requests with other adapters have
batches of their own, by turns. Requests begin in the order in which they came, as soon as a
sequence is free.

Promises that a long prompt delays nobody by more than one ubatch; that no request waits for one
that nobody will end; that a request which ends, however that is, leaves its sequence to the next;
and that an error ends the requests it concerns and no other. Knows nothing of text.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..architecture import ATTENTION_CHUNK
from ..errors import EngineError
from .cache import Cache
from .choosing import Chooser
from .drafts import Costs
from .handles import Handles
from .request import RUN_AHEAD, Request
from .scoring import Scores, Scoring
from .sequence import CachedSequence, Piece, decode, take_steps, with_rows
from .turns import Turns

BURST_SECONDS = 0.005
"""How long tokens are chosen before they are handed on, about: a person sees no delay, and tokens
that take as long are handed on one by one. Waking a thread of an idle machine takes up to 0.2 ms,
as long as a token of a small model."""

_BURST_PART_EACH = 0.4  # of it for each that is answered: what is done for one costs all of them

_LOST_AFTER = 0.5  # seconds
_WORTH_STEPS = 2  # tokens
_STEPS_TO_DRAFT = 4  # tokens after which a draft is looked for again, where there was none


class Scheduler:
    """Those who ask, and the sequences that they are answered in.

    Args:
        sequences: those of the context, in the order of their numbers.
        cache: what they and main memory hold.
        n_ctx: tokens that each of them has room for.
        n_read: tokens of a batch that reads prompts, at most.
        n_outputs: tokens of a batch that have logits, at most; there may be one for each sequence
            in any case.
    """

    def __init__(
        self,
        handles: Handles,
        sequences: Sequence[CachedSequence],
        cache: Cache,
        n_ctx: int,
        n_read: int,
        n_outputs: int,
    ) -> None:
        self._handles, self._thread = handles, handles.thread
        self.cache = cache
        self._sequences = tuple(sequences)
        self._n_ctx = n_ctx
        self._n_read = min(n_read, handles.n_batch)
        self.n_outputs = min(n_outputs, self._n_read)
        self._max_draft = self.n_outputs - 1
        self._costs = Costs()
        self._turns = Turns()
        self._chooser = Chooser(handles, n_ctx, self._costs)
        self._arrived: deque[Request] = deque()
        self._changed = False
        self._posted_at = -math.inf  # when the `_serve` was posted that has not begun yet
        self._looked_at = -math.inf
        self._waits = itertools.count(1)
        # Only the engine's thread changes these.
        self._waiting: list[Request] = []
        self._running: list[Request] = []  # in the order of their sequences
        self._reading: tuple[Request, ...] = ()
        self._failed_steps = False
        self._n_begun = 0
        self._scores = Scores()

    # --- called by anyone, signal handlers and finalizers among them

    def submit(self, request: Request) -> None:
        """Begin it as soon as a sequence is free."""
        self._arrived.append(request)
        self.look()

    def resume(self, request: Request, prompt: Sequence[int] | None) -> None:
        """Go on with an answer whose sequence is full.

        Args:
            prompt: checked token ids that leave room for more than the answer so far; None ends it.
        """
        request.next_prompt = prompt
        request.resumed = True
        self.submit(request)

    def cancel(self, request: Request) -> None:
        """End it within one token, or one ubatch; within one operation of ggml's on the CPU."""
        request.cancelled = True
        if request in self._reading:
            self._thread.abort_graph()
        self.look()

    def look(self) -> None:
        """Have the engine's thread see what has changed."""
        self._changed = True
        self._thread.ask_attention()
        self._looked_at = now = time.monotonic()
        # Who is interrupted between these lines posts nothing; those who wait look again.
        if now - self._posted_at > _LOST_AFTER:
            self._posted_at = now
            self._thread.post(lambda: self._serve(now))

    def expects(self, requests: Sequence[Request], is_there: Callable[[], bool]) -> bool:
        """Whether something is there; if not, their reader has read all and waits for more."""
        if is_there():
            return True
        for request in requests:
            request.take()
        # The thread is left alone while it goes on by itself: a look costs a part of a token.
        if (
            self._waiting
            or self._arrived
            or any(request.is_held_up for request in requests)
            or time.monotonic() - self._looked_at > _LOST_AFTER
        ):
            self.look()
        return is_there()

    def awaits(self, request: Request, owner: object, is_alive: Callable[[], bool]) -> None:
        """Its owner waits for it now, and reads nothing else meanwhile."""
        request.owned_by(owner, is_alive)
        request.awaited = next(self._waits)

    def wait(self, request: Request, is_there: Callable[[], bool]) -> None:
        """Until something is there that the request brings.

        Raises:
            EngineError, WorkerError: as ``NativeThread.wait``.
        """
        thread = threading.current_thread()
        self.awaits(request, thread, thread.is_alive)
        try:
            self._thread.wait(request.news, lambda: self.expects([request], is_there))
        finally:
            request.awaited = 0

    def check(self) -> None:
        """Raise EngineError or WorkerError if nothing can be waited for."""
        self._thread.check()

    def close(self) -> None:
        """Let those go who wait, once the engine's thread has ended."""
        for request in (*self._running, *self._waiting, *self._arrived):
            self._end(request, EngineError("the model was closed", hint="Open it again."))

    @property
    def usage(self) -> list[tuple[int, bool]]:
        """See ``Engine.sequences``."""
        return [(len(sequence.tokens), self.uses(sequence)) for sequence in self._sequences]

    # --- in the engine's thread

    def uses(self, sequence: CachedSequence) -> bool:
        """Whether a request has it."""
        return any(request.sequence is sequence for request in self._running)

    def clear(self) -> None:
        """Forget all that no request has."""
        self.cache.clear(self.uses)
        self._scores.clear()

    def _serve(self, posted_at: float) -> None:
        """Decode batch after batch, until nothing is left to do or the thread is wanted."""
        if posted_at != self._posted_at:
            return  # there is a later one
        self._posted_at = -math.inf
        try:
            while self._thread.rearm() and self._turn():
                if self._thread.is_wanted:
                    self.look()
                    return
        except BaseException as error:
            # A fault of the scheduler itself: nobody may wait for what will never come.
            for request in (*self._running, *self._waiting):
                self._end(request, error)

    def _turn(self) -> bool:
        """Decode one batch; False where there is nothing to decode."""
        if self._changed:
            self._changed = False
            self._look_around()
        is_busy = self._make_features()
        batch = self._next_batch()
        if batch and not self._use_adapters(batch):
            return True
        if batch and not is_busy and self._answer_on(batch):
            return True
        # llama.cpp takes tokens or embeddings, not both in one call.
        for has_names in (False, True):
            if one_kind := [
                (one, piece) for one, piece in batch if _has_names(one, piece) == has_names
            ]:
                self._decode(one_kind)
        return bool(batch) or is_busy

    def _make_features(self) -> bool:
        """Make what one request needs next, if one needs any: the others wait for one call."""
        for request in self._running:
            names = request.next_names(self._n_read)
            if request.features is None or not names or request.features.is_ready(names):
                continue
            begun = time.monotonic()
            try:
                request.features.step(names)
            except BaseException as error:
                self._end(request, error)
            request.prefill_seconds += time.monotonic() - begun
            return True
        return False

    # Who gets a sequence, and which

    def _look_around(self) -> None:
        while self._arrived:
            self._admit(self._arrived.popleft())
        for request in (*self._running, *self._waiting):
            if request.cancelled:
                self._end(request)
        while (following := self._following()) is not None:
            self._begin(following)
            if self._handles.is_copying:  # before the next batch, which others do not disturb
                self._changed = True
                return

    def _admit(self, request: Request) -> None:
        """Let it wait for a sequence; one that was full has one, and is the first."""
        if not request.is_full:
            if not request.ended:
                self._waiting.append(request)
        elif not request.ended:
            self._release(request)
            if request.next_prompt is None:
                request.outcome = "length"
                self._end(request)
            else:
                request.go_on(request.next_prompt)
                self._waiting.insert(0, request)

    def _following(self) -> Request | None:
        """The request that begins next, if it can begin now."""
        ready = [one for one in self._waiting if one.after is None or one.after.is_read]
        for request in ready:
            if self._is_full():
                self._supersede(request)
        return ready[0] if ready and not self._is_full() else None

    def _is_full(self) -> bool:
        return len(self._running) == len(self._sequences)

    def _supersede(self, request: Request) -> None:
        """End what its owner does not read while it waits for this one, or what nobody can read.

        Of several sequences, another one may become free before.
        """
        is_stuck = len(self._sequences) == 1 or all(one.is_paused for one in self._running)
        for one in sorted(self._running, key=lambda one: one.begun):
            is_unread = one.awaited < request.awaited and one.owner is request.owner
            if (is_unread and is_stuck) or (one.is_paused and not one.owner_is_alive()):
                error = EngineError(
                    "this stream was ended by a later request to the same model",
                    hint="Read one answer before asking for the next, or raise n_parallel.",
                )
                self._end(one, error)
                return

    def _begin(self, request: Request) -> None:
        """Give it a sequence, with what that or another one has read of its prompt already."""
        self._waiting.remove(request)
        request.after = None
        free = [sequence for sequence in self._sequences if not self.uses(sequence)]
        if isinstance(request, Scoring):
            self._scores.begin(request)
        try:
            request.sequence, count = self.cache.take(request.reusable, free, request.adapters)
        except EngineError as error:
            self._end(request, error)
            return
        request.begun = self._n_begun = self._n_begun + 1
        self._running.append(request)
        self._running.sort(key=lambda one: one.held.number)
        if not request.decodes:
            request.notify()
            return
        if isinstance(request, Scoring):
            return
        if request.sampler is None:
            request.reused_tokens = count
            request.sampler = self._handles.make_sampler(
                request.sampling, [token for token in request.text if token >= 0]
            )
        else:  # it is resumed, and chooses on
            request.reread_tokens += len(request.text) - count

    # One batch

    def _next_batch(self) -> list[tuple[Request, Piece]]:
        """The pieces of the next batch, in the order of their sequences."""
        wanted = [
            (request, request.missing())
            for request in self._with_same_adapters(
                [
                    request
                    for request in self._running
                    if request.decodes and not request.holds_up() and self._can_go_on(request)
                ]
            )
        ]
        if n_scorings := sum(isinstance(request, Scoring) for request, _ in wanted):
            rows = max((self.n_outputs - len(wanted) + n_scorings) // n_scorings, 1)
            wanted = [
                (request, min(count, rows) if isinstance(request, Scoring) else count)
                for request, count in wanted
            ]
        unread = [(count, request.held.number) for request, count in wanted if count > 1]
        if not unread:
            is_alone = len(wanted) == 1  # a draft would delay the others
            return [(request, self._next_piece(request, is_alone)) for request, _ in wanted]
        # A token for each that answers, and a fair share of what is left for each prompt.
        left = self._n_read - (len(wanted) - len(unread))
        shares: dict[int, int] = {}
        for index, (count, number) in enumerate(sorted(unread)):
            shares[number] = max(1, min(count, left // (len(unread) - index)))
            left -= shares[number]
        return [
            (request, request.piece(shares.get(request.held.number, 1))) for request, _ in wanted
        ]

    def _with_same_adapters(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Those of them whose turn it is."""
        native = self._handles.adapters
        if native is None or not requests:
            return requests
        wanting = (request.adapters for request in requests)
        chosen = self._turns.choose(wanting, native.scales, native.switch_seconds)
        return [request for request in requests if request.adapters == chosen]

    def _use_adapters(self, batch: Sequence[tuple[Request, Piece]]) -> bool:
        """Have the batch computed with its adapters; where that fails, its requests end."""
        try:
            self._handles.use_adapters(batch[0][0].adapters)
        except EngineError as error:
            for request, _ in batch:
                self._end(request, error)
            return False
        return True

    def _can_go_on(self, request: Request) -> bool:
        """Whether the features are there that its next piece may need."""
        names = request.next_names(self._n_read)
        return request.features is None or not names or request.features.is_ready(names)

    def _next_piece(self, request: Request, is_alone: bool) -> Piece:
        """The last token of a request, with a draft of what follows it if that is faster."""
        piece = request.piece(1)
        if request.drafter is None or not is_alone or not request.answers:
            return piece
        position = len(request.text) - 1
        limits = [
            self._max_draft,
            self._n_ctx - 1 - position,
            # What is not accepted is dropped, which is possible within a chunk.
            ATTENTION_CHUNK - 1 - position % ATTENTION_CHUNK,
        ]
        # As many tokens can be chosen as there are in the draft, and one more.
        if request.max_tokens is not None:
            limits.append(request.max_tokens - request.n_chosen - 1)
        if request.paced:
            limits.append(RUN_AHEAD - request.unread - 1)
        draft = request.drafter.draft(min(limits), self._costs, self._handles.is_end)
        tokens = [*piece.tokens, *draft]
        return Piece(piece.sequence, tokens, len(tokens), drafted=len(draft))

    def _decode(self, batch: Sequence[tuple[Request, Piece]]) -> None:
        """Decode it, and choose the next token of each that was read to its end."""
        begun = time.monotonic()
        self._reading = tuple(request for request, piece in batch if len(piece.tokens) > 1)
        try:
            is_whole = decode(
                self._handles, [with_rows(piece, one.features) for one, piece in batch]
            )
        except BaseException as error:
            self._decode_apart([request for request, _ in batch], error)
            return
        finally:
            self._reading = ()
        if not is_whole:  # it is tried again without those that were cancelled
            return
        seconds = time.monotonic() - begun
        self.cache.note_reading(sum(len(piece.tokens) for _, piece in batch), seconds)
        if len(batch) == 1 and batch[0][0].answers:
            self._costs.add(batch[0][1].drafted, seconds)
        ended = [
            request
            for request, piece in batch
            if piece.outputs and not self._chooser.choose(request, piece.drafted)
        ]
        for _, piece in batch:
            self.cache.note_end(piece.sequence)
        now = time.monotonic()
        for request, _ in batch:
            n_chosen = request.n_chosen
            if n_chosen > request.n_before + 1:
                request.decode_seconds += now - begun
            else:
                request.prefill_seconds += now - begun
            if n_chosen and request not in ended:
                self._hand_on(request, now, seconds)
        for request in ended:
            self._end(request, request.error)
        for request, _ in batch:
            if len(request.text) > self._n_ctx and not request.ended:
                request.is_full = True
                request.notify()

    def _decode_apart(self, requests: Sequence[Request], error: BaseException) -> None:
        """Find out whom an error concerns, and end those alone."""
        for request in requests:
            request.held.settle()
        if len(requests) == 1:
            self._end(requests[0], error)
            return
        for request in requests:
            self._decode([(request, request.piece(min(request.missing(), self._n_read)))])

    def _answer_on(self, batch: Sequence[tuple[Request, Piece]]) -> bool:
        """Decode and choose several tokens of each, if all of them just answer; whether so.

        What Python does for a token costs as much as a part of a small model's token where it has
        left the processor's cache, which it does with every decoding.
        """
        choices = [request.choice(piece) for request, piece in batch]
        plain = [choice for choice in choices if choice is not None]
        most = min(self._tokens_left(request) for request, _ in batch)
        is_alone = len(batch) == 1
        if is_alone and batch[0][0].drafter is not None:
            most = min(most, _STEPS_TO_DRAFT)
        self._thread.pay_attention()
        is_wanted = self._changed or self._thread.is_wanted
        if most < _WORTH_STEPS or len(plain) < len(batch) or is_wanted or self._failed_steps:
            self._failed_steps = False
            return False
        begun = time.monotonic()
        pieces = [piece for _, piece in batch]
        every = take_steps(self._handles, pieces, plain, most, self._burst_seconds)
        if every is None:
            return False
        now = time.monotonic()
        n_steps = len(every[0])
        if is_alone and n_steps:
            self._costs.add(0, (now - begun) / n_steps)
        self._failed_steps = not n_steps  # in the usual way it is found out whom an error concerns
        for (request, _), tokens in zip(batch, every, strict=True):
            n_before = request.n_chosen
            goes_on = all(self._chooser.take(request, token) for token in tokens)
            n_taken = request.n_chosen - n_before
            request.decode_seconds += (now - begun) * n_taken / max(n_steps, 1)
            if not goes_on:
                self._end(request, request.error)
            elif n_taken:
                self._hand_on(request, now, (now - begun) / n_steps)
        return True

    @property
    def _burst_seconds(self) -> float:
        """How long tokens are chosen before they are handed on."""
        return BURST_SECONDS * min(_BURST_PART_EACH * len(self._running), 1.0)

    def _tokens_left(self, request: Request) -> int:
        """How many tokens can be chosen for it before something else is to be done."""
        place = len(request.held.tokens) % ATTENTION_CHUNK
        limits = [
            self._n_ctx - len(request.text),
            # The first and the last of a chunk are decoded in the usual way.
            ATTENTION_CHUNK - 1 - place if place else 0,
        ]
        if request.max_tokens is not None:
            limits.append(request.max_tokens - request.n_chosen)
        if request.paced:
            limits.append(RUN_AHEAD - request.unread)
        return min(limits)

    def _hand_on(self, request: Request, now: float, step_seconds: float) -> None:
        """Let its reader see what is there, unless the next token is as near to the time for it.

        Args:
            step_seconds: what a token takes.
        """
        if request.n_chosen == 1:
            self._changed = True  # others may have waited for its prompt to be read
        elif (
            now + step_seconds / 2 - request.notified_at < self._burst_seconds
            and 2 * request.unread < RUN_AHEAD
        ):
            return
        if request.paced:
            request.notified_at = now
            request.notify()

    def _end(self, request: Request, error: BaseException | None = None) -> None:
        """Take its sequence from it, and let its reader see that it has ended."""
        if isinstance(request, Scoring) and request.is_complete:
            self._scores.add(request)
        self._release(request)
        if request in self._waiting:
            self._waiting.remove(request)
        if request.sampler is not None:
            self._handles.free_sampler(request.sampler)
        request.error = error
        request.ended = True
        self._changed = True
        request.notify()

    def _release(self, request: Request) -> None:
        """Take its sequence from it, if it has one."""
        if request.sequence is not None:
            self._running.remove(request)
            self.cache.release(request.sequence)
            request.sequence = None
            self._changed = True


def _has_names(request: Request, piece: Piece) -> bool:
    return request.features is not None and min(piece.tokens) < 0
