"""What is chosen for a request after its tokens were decoded, and whether it goes on with that.

Promises that a token which a constraint forbids is never chosen, that an error of one request is
noted there and raised nowhere, and that drafts change nothing but the time. Used in the thread that
calls llama.cpp alone.
"""

from __future__ import annotations

from .constraint import mask_of
from .drafts import Costs
from .handles import Handles
from .logprobs import TokenLogprobs
from .request import Request
from .scoring import Scoring


class Chooser:
    """Chooses the tokens of requests that have a sequence.

    Args:
        n_ctx: tokens that each sequence has room for.
        costs: what drafts cost, which they learn from.
    """

    def __init__(self, handles: Handles, n_ctx: int, costs: Costs) -> None:
        self._handles, self._n_ctx, self._costs = handles, n_ctx, costs

    def choose(self, request: Request, n_drafted: int) -> bool:
        """Choose its next token, and those after it as long as they were drafted; False if it ends.

        Each is chosen as it would be without a draft, so that nothing but the time is another. For
        a `Scoring` nothing is chosen.
        """
        if isinstance(request, Scoring):
            return self._score(request)
        sequence, n_earlier = request.held, request.n_chosen
        try:
            while goes_on := self._choose_one(request):
                if request.cancelled or not sequence.confirm(request.text[-1]):
                    break
        finally:
            sequence.drop_draft()
        if n_drafted and request.drafter is not None:
            n_chosen = request.n_chosen - n_earlier
            request.drafted_tokens += n_drafted
            request.accepted_tokens += max(n_chosen - 1, 0)
            request.drafter.learn(n_drafted, n_chosen, self._costs)
        return goes_on

    def _score(self, request: Scoring) -> bool:
        """Keep how likely its tokens were; False where it ends."""
        try:
            return request.score()
        except BaseException as error:
            request.error = error
            return False

    def _choose_one(self, request: Request) -> bool:
        """Choose its next token; False where it ends."""
        assert request.accept is not None and request.sampler is not None
        if request.max_tokens == 0:
            request.outcome = "length"
            return False
        constraint, sequence = request.constraint, request.held
        try:
            if constraint is not None and constraint.is_complete:  # before the first token
                request.outcome = "stop"
                return False
            mask = None if constraint is None else mask_of(constraint, self._handles.n_vocab)
            token = sequence.sample(request.sampler, mask)
            if request.n_logprobs is not None:
                logprobs = TokenLogprobs.of(sequence.last_logits(), token, request.n_logprobs)
                if logprobs is None:  # of a token that the constraint does not allow
                    raise sequence.damaged()
                request.logprobs.append(logprobs)
        except BaseException as error:
            request.error = error
            return False
        return self.take(request, token)

    def take(self, request: Request, token: int) -> bool:
        """Take a token that was chosen into its text; False where it ends."""
        assert request.accept is not None
        constraint = request.constraint
        try:
            if constraint is not None:
                constraint.accept(token)
            request.text.append(token)
            is_end = not request.ignores_ends and self._handles.is_end(token)
            goes_on = request.accept(token, is_end)
            is_complete = constraint is not None and constraint.is_complete
        except BaseException as error:
            request.error = error
            return False
        if is_complete or not goes_on:
            request.outcome = "stop"
        elif request.n_chosen == request.max_tokens or (
            len(request.text) > self._n_ctx and not request.goes_on
        ):
            request.outcome = "length"
        return request.outcome is None
