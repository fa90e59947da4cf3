"""How likely a model found the tokens of a text: a request whose tokens all have their logits.

Promises that no more than one batch's logits are there at a time, and that of texts which begin
alike, as the answers to a question of many choices do, the beginning is scored once. Knows nothing
of others who ask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..errors import EngineError
from .adapters import Scales
from .logprobs import TokenLogprobs
from .request import Request
from .sequence import Piece, common_prefix

_MOST_KEPT = 1 << 17  # log probabilities of texts that were scored, of about 100 bytes each


class Scoring(Request):
    """Tokens to be decoded from the first one on, each but the last with its logits.

    Args:
        tokens: checked ids, at least one; all but the last fit into a sequence.
        n_top: how many of the likeliest tokens to keep beside each.
        n_outputs: how many are decoded at a time, at most.
        adapters: how much of each loaded adapter the model has for it.
    """

    def __init__(
        self, tokens: Sequence[int], n_top: int, n_outputs: int, adapters: Scales = ()
    ) -> None:
        super().__init__(tokens[:-1], paced=False, adapters=adapters)
        self._tokens, self._n_top, self._n_outputs = tokens, n_top, n_outputs
        self.ended = self.is_complete

    def result(self) -> list[TokenLogprobs]:
        """Those of each token but the first, when it has ended.

        Raises:
            EngineError: it was cancelled, or what ended it.
        """
        if self.error is not None:
            raise self.error
        if not self.is_complete:
            raise EngineError("the scoring of a text was cancelled")
        return self.logprobs

    @property
    def decodes(self) -> bool:
        """As all of these are."""
        return True

    @property
    def reusable(self) -> Sequence[int]:
        """Those that are scored already, and the next: the others need their logits."""
        return self.text[: len(self.logprobs) + 1] if self.logprobs else ()

    @property
    def n_kept(self) -> int:
        """How many log probabilities it has."""
        return len(self.logprobs) * (1 + self._n_top)

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to decode."""
        return len(self.logprobs) == len(self.text)

    # --- in the engine's thread, while it has a sequence

    def begin_like(self, other: Scoring) -> None:
        """Take over what was found of a text that begins like this one, if that is more."""
        if other._n_top == self._n_top and other.adapters == self.adapters:
            # The score of a token takes those before it and itself.
            count = min(common_prefix(other._tokens, self._tokens), len(self.text)) - 1
            if count > len(self.logprobs):
                self.logprobs = other.logprobs[:count]

    def missing(self) -> int:
        """How many of its tokens are to be decoded next, as far as nobody else wants logits."""
        sequence = self.held
        sequence.settle()
        if len(sequence.tokens) > len(self.logprobs):  # their logits were lost with their batch
            sequence.keep(len(self.logprobs))
        # The short piece is the first one, for the reason that `engine._edges` gives.
        return (len(self.text) - len(sequence.tokens) - 1) % self._n_outputs + 1

    def piece(self, count: int) -> Piece:
        """Its next tokens, with logits, in two chunks perhaps: it is seldom rewound."""
        begin = len(self.held.tokens)
        tokens = self.text[begin : begin + count]
        return Piece(self.held, tokens, len(tokens))

    def score(self) -> bool:
        """Keep what the logits of the last batch say; whether there is more to decode.

        Raises:
            EngineError: the logits are NaN.
        """
        n_held = len(self.held.tokens)
        for place in range(len(self.logprobs), n_held):
            logits = self.held.last_logits(n_held - 1 - place)
            scored = TokenLogprobs.of(logits, self._tokens[place + 1], self._n_top)
            if scored is None:
                raise self.held.damaged()
            self.logprobs.append(scored)
        return not self.is_complete


class Scores:
    """The last texts that were scored, for those that begin like them."""

    def __init__(self) -> None:
        self._texts: deque[Scoring] = deque()

    def add(self, scoring: Scoring) -> None:
        """Keep what was found of a whole text."""
        self._texts.append(scoring)
        while sum(one.n_kept for one in self._texts) > _MOST_KEPT:
            self._texts.popleft()

    def begin(self, scoring: Scoring) -> None:
        """Give a text what is known of its beginning."""
        for one in self._texts:
            scoring.begin_like(one)

    def clear(self) -> None:
        """Forget all."""
        self._texts.clear()
