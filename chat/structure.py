"""Answers of a given form: as a JSON Schema, a grammar or a regular expression has it.

Promises that an answer of which the form was asked for is a whole one of that form, or was cut off;
and that a form which cannot be held to is refused before the first token. llguidance computes which
tokens may come next, from the bytes of each token in the model's own vocabulary. Knows nothing of
how tokens are chosen.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..errors import FormError, SettingError
from ..runtime.constraint import Constraint, Mask
from ..untrusted import brief
from .call_grammar import calls_grammar
from .forms import Form
from .gbnf import Tokens, read_grammar
from .lexemes import lark_grammar
from .making import Makers, Making
from .regex import translated
from .schema import schema_grammar
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MOST_KEPT = 64  # structures that are ready for other answers
_SECONDS = 10.0  # to make one
_MOST_STATES = 50_000  # of a lexer, of 1 to 2 kB each
_MOST_ITEMS = 20_000  # of a row of the parser; what schemas have is limited before

# What llguidance marks the names of control tokens with: no text has this byte.
_CONTROL = b"\xff"


class Structure:
    """A form that was checked, and compiled for the tokens of a model.

    Args:
        matcher: llguidance's, which has seen no token.
        where: the setting that it comes from, for errors.
        n_vocab: how many tokens the model has.
    """

    def __init__(self, matcher: LLMatcher, where: str, n_vocab: int) -> None:
        self._matcher, self._where, self._n_vocab = matcher, where, n_vocab
        self._copying = threading.Lock()

    def constraint(self) -> Constraint:
        """What holds one answer to the form."""
        with self._copying:
            matcher = self._matcher.deep_copy()
        return _Held(matcher, self._where, self._n_vocab)


class _Held:
    """Holds one answer to a form."""

    def __init__(self, matcher: LLMatcher, where: str, n_vocab: int) -> None:
        self._matcher, self._where = matcher, where
        self._words: Mask = np.zeros(-(-n_vocab // 32), np.uint32)

    def mask(self) -> Mask:
        """The tokens that may come next."""
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check()
        return self._words

    def accept(self, token: int) -> None:
        """Take the token that was chosen."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise FormError(self._where, brief(_reason(self._matcher.get_error()), 200))


class Structures:
    """The forms that answers of one model are held to.

    llguidance's view of the vocabulary is made when the first one is asked for, once for a model.

    Args:
        vocabulary: of the model.
        end_ids: the tokens that end an answer, which they may where the form allows it.
    """

    def __init__(self, vocabulary: Vocabulary, end_ids: Collection[int]) -> None:
        self._vocabulary, self._end_ids = vocabulary, sorted(end_ids)
        self._kept: OrderedDict[tuple[str, str, str], Structure] = OrderedDict()
        self._keeping, self._preparing = threading.Lock(), threading.Lock()
        self._is_prepared = False
        self._makers = Makers()

    def of(self, form: Form) -> Structure:
        """The form, ready for answers.

        Raises:
            SettingError: it is invalid, cannot be enforced, is met by nothing, or is too large.
            BusyError: others that take long are being compiled.
        """
        self.prepare()  # what is made once for a model may take longer
        return self._begun(form).result(_SECONDS)

    async def awaited(self, form: Form) -> Structure:
        """The same for a task."""
        if not self._is_prepared:
            await asyncio.to_thread(self.prepare)
        return await self._begun(form).awaited(_SECONDS)

    def of_grammar(self, grammar: str, where: str) -> Structure:
        """The form that llguidance's own grammar describes; raises as `of`."""
        self.prepare()
        key = "llguidance", where, grammar
        making = self._makers.begin(lambda: self._kept_or(key, lambda: grammar, where), where)
        return making.result(_SECONDS)

    def prepare(self) -> None:
        """Make what all forms need, once: 2.6 s where there are 202,048 tokens."""
        with self._preparing:
            self._tokenizer  # noqa: B018
            self._is_prepared = True

    def _begun(self, form: Form) -> Making[Structure]:
        def make() -> Structure:
            try:
                key = form.kind, form.where, json.dumps(form.value)
            except (TypeError, ValueError, RecursionError):  # which `prepared` says better
                key = None
            return self._kept_or(key, lambda: self._grammar_of(form), form.where)

        return self._makers.begin(make, form.where)

    def _grammar_of(self, form: Form) -> str:
        if form.kind == "schema":
            return schema_grammar(form.value, form.where)
        if form.kind == "calls":
            return calls_grammar(form.value, form.where)
        from llguidance import LLMatcher

        if form.kind == "grammar":
            tokens = Tokens(self._token_of, len(self._vocabulary), self._end_ids)
            rules = read_grammar(form.value, form.where, tokens)
            return LLMatcher.grammar_from_lark(lark_grammar(rules, self._end_ids))
        return LLMatcher.grammar_from_regex(translated(form.value, form.where))

    def _token_of(self, text: str) -> int | None:
        tokens = self._vocabulary.encode(text, special=True)
        return tokens[0] if len(tokens) == 1 else None

    def _kept_or(
        self, key: tuple[str, str, str] | None, make: Callable[[], str], where: str
    ) -> Structure:
        with self._keeping:
            if key is not None and (kept := self._kept.pop(key, None)) is not None:
                self._kept[key] = kept
                return kept
        try:
            structure = self._compiled(make(), where)
        except RecursionError:
            raise SettingError(f"{where} is nested too deep") from None
        with self._keeping:
            if key is not None:
                self._kept[key] = structure
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return structure

    def _compiled(self, grammar: str, where: str) -> Structure:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            max_lexer_states=_MOST_STATES, max_items_in_row=_MOST_ITEMS, verbose_errors=False
        )
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            reason = _reason(matcher.get_error())
            raise SettingError(f"{where} cannot be enforced", found=brief(reason, 300))
        trial = matcher.deep_copy()
        begins = np.frombuffer(trial.compute_bitmask(), np.uint8)
        if not begins.any() or trial.is_error():
            raise SettingError(f"{where} cannot be enforced: no text is of this form")
        # What grows beyond all limits often does so after the first token.
        first = int(np.flatnonzero(np.unpackbits(begins, bitorder="little"))[0])
        if trial.consume_token(first) and not trial.is_stopped():
            trial.compute_bitmask()
        if trial.is_error():
            reason = _reason(trial.get_error())
            raise SettingError(f"{where} cannot be enforced", found=brief(reason, 300))
        return Structure(matcher, where, len(self._vocabulary))

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """llguidance's view of the vocabulary: the bytes of each token, and how text is cut."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(
            TokenizerWrapper(_Tokens(self._vocabulary, self._end_ids)),
            n_vocab=len(self._vocabulary),
            eos_token=self._end_ids,
        )


class _Tokens:
    """A vocabulary as llguidance asks for one."""

    def __init__(self, vocabulary: Vocabulary, end_ids: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self.eos_token_id, self.bos_token_id = end_ids[0], vocabulary.bos_id
        self.tokens = [
            _CONTROL + vocabulary.token_bytes(token, special=True) if data is None else data
            for token, data in enumerate(vocabulary.text_bytes())
        ]
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes) -> list[int]:
        return self._vocabulary.encode(text.decode("utf-8", "replace"))


def _reason(message: str) -> str:
    """The first thing that llguidance says about an error."""
    return message.strip().split("\n")[0]
