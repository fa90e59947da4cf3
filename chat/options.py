"""What an answer is asked for with: how tokens are chosen, how many, and what ends it.

Promises that settings which exist can be carried out, and that each is declared once. Knows nothing
of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, cast, get_args

from ..errors import SettingError, did_you_mean
from ..ranges import check_choice, check_flag, check_whole, value_text, wrong_type
from ..runtime.adapters import WantedAdapters, as_scales
from ..runtime.sampling import MAX_SEED, Sampling
from .call_grammar import calls_form, calls_or_answer
from .call_parser import CallParser
from .forms import Form, ResponseFormat, form_of
from .tools import Tool, ToolChoice, ToolInput, as_tools

WhenFull = Literal["stop", "drop"]
"""What happens at the end of the context: the answer stops there and longer messages are refused,
or the oldest exchanges are dropped."""

MAX_ANSWERS = 1024
"""How many answers to one prompt may be asked for at a time."""

MAX_TOP_LOGPROBS = 100
"""Of how many tokens the probability may be asked for beside each token's own."""


class AnswerOptions(TypedDict, total=False):
    """The keywords of ``Model.chat`` and ``Model.generate``.

    The fields of ``Sampling`` can be given one by one; they win over those of ``sampling``.
    """

    sampling: Sampling
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    repeat_last_n: int
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Iterable[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]]
    max_tokens: int | None
    stop: str | Iterable[str]
    special: bool
    when_full: WhenFull
    allow_download: bool
    drafts: bool
    adapters: WantedAdapters
    logprobs: bool
    top_logprobs: int
    response_format: ResponseFormat | None
    grammar: str | None
    regex: str | None
    tools: Iterable[ToolInput]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool


@dataclass(frozen=True)
class AnswerSettings:
    """How one answer is made.

    Args:
        sampling: how each token is chosen.
        max_tokens: of the answer; None is until the model ends it or the context is full.
        stop: strings that end the answer, which stops before the first of them; a string is one.
        special: whether control tokens are read where the prompt names them, and shown by name in
            the answer. A text from outside can then end its own turn and begin another.
        when_full: what happens at the end of the context; see ``Model.chat``.
        allow_download: whether a message may have a picture on the web.
        drafts: whether tokens are drafted; see ``Model.generate``.
        adapters: which of the model's, and how much of each; None is what the model has.
        logprobs: whether the logarithm of each token's probability is kept.
        top_logprobs: of how many of the likeliest tokens it is kept, beside each.
        response_format, grammar, regex: the form of the answer; see ``Model.generate``.
        tools: what the model may call.
        tool_choice: whether it does.
        parallel_tool_calls: whether an answer may have more than one call.

    Raises:
        SettingError: a value outside its range, or of the wrong type.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    special: bool = False
    when_full: WhenFull = "stop"
    allow_download: bool = False
    drafts: bool = False
    adapters: tuple[tuple[str | int, float], ...] | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    regex: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, Sampling):
            raise wrong_type("sampling", self.sampling, "a Sampling")
        check_whole("max_tokens", self.max_tokens, 0, or_none=True)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        check_flag("special", self.special)
        check_flag("allow_download", self.allow_download)
        check_flag("drafts", self.drafts)
        object.__setattr__(self, "adapters", as_scales(self.adapters))
        check_flag("logprobs", self.logprobs)
        check_whole("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise SettingError(
                "top_logprobs is asked for without logprobs", expected="logprobs=True beside it"
            )
        form_of(self.response_format, self.grammar, self.regex)
        check_choice("when_full", self.when_full, get_args(WhenFull))
        object.__setattr__(self, "tools", as_tools(self.tools))
        choice = ToolChoice.of(self.tool_choice, self.tools)
        object.__setattr__(self, "tool_choice", choice)
        check_flag("parallel_tool_calls", self.parallel_tool_calls)

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the model is shown."""
        return () if self.tool_choice.mode == "none" else self.tools

    def call_parser(self) -> CallParser | None:
        """What finds calls in one answer; None where the model is shown no tools."""
        tools = self.callable_tools
        if not tools:
            return None
        parameters = {tool.name: list(tool.parameters.get("properties", ())) for tool in tools}
        return CallParser(parameters, most=None if self.parallel_tool_calls else 1)

    @property
    def form(self) -> Form | None:
        """The form that the answer is held to; None is any text."""
        form = form_of(self.response_format, self.grammar, self.regex)
        choice = self.tool_choice
        if form is None:
            return calls_form(self.tools, choice, parallel=self.parallel_tool_calls)
        if choice.is_forced:
            raise SettingError(
                "an answer has one form",
                found=f"{form.where} and tool_choice",
                expected='tool_choice "auto" or "none" beside it',
            )
        if form.kind == "schema" and self.callable_tools:
            return calls_or_answer(self.tools, form, parallel=self.parallel_tool_calls)
        return form

    @property
    def n_logprobs(self) -> int | None:
        """How many alternatives are kept with each token; None where nothing is."""
        return self.top_logprobs if self.logprobs else None

    @classmethod
    def of(cls, options: Mapping[str, Any], sampling: Sampling | None = None) -> AnswerSettings:
        """The settings that keywords ask for.

        Args:
            options: `AnswerOptions`.
            sampling: what holds where ``options`` has no ``sampling``.

        Raises:
            TypeError: a keyword is unknown.
            SettingError: a value outside its range, or of the wrong type.
        """
        for name in options:
            if name not in AnswerOptions.__annotations__:
                hint = did_you_mean(name, AnswerOptions.__annotations__)
                raise TypeError(f"unexpected keyword argument {name!r}. {hint or ''}".rstrip())
        rest = dict(options)
        names = [entry.name for entry in fields(Sampling)]
        flat = {name: rest.pop(name) for name in names if name in rest}
        settings = cls(**{"sampling": sampling or Sampling(), **rest})
        return replace(settings, sampling=replace(settings.sampling, **flat))

    def each(self, n: int | None) -> list[AnswerSettings]:
        """These settings for each of ``n`` answers, whose seeds follow one another.

        Raises:
            SettingError: ``n`` is not a whole number from 1 to `MAX_ANSWERS`; None is one.
        """
        check_whole("n", n, 1, MAX_ANSWERS, or_none=True)
        first = self.sampling.with_seed()
        seeds = [((first.seed or 0) + index) % (MAX_SEED + 1) for index in range(n or 1)]
        return [replace(self, sampling=replace(first, seed=seed)) for seed in seeds]


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) or not isinstance(stop, Iterable) else tuple(stop)
    if not all(isinstance(text, str) and text for text in strings):
        raise SettingError(
            "stop cannot end a text",
            found=value_text(stop),
            expected="a string of at least one character, or several",
        )
    return cast("tuple[str, ...]", strings)
