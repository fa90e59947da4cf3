"""`llama4 compare`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal.compare_view import compare_progress, compare_view
from . import values
from .declare import argument, command, group, json_flag, option, verbose_flag
from .options import kv_types
from .output import give, show_warnings
from .stdin import text_of_file
from .text_options import (
    chunk_option,
    chunks_option,
    devices_option,
    special_flag,
    text_option,
    threads_option,
    workers_option,
)

if TYPE_CHECKING:
    from ..evaluation import Candidate
    from ..measure.questions import Question
    from ..runtime.settings import KVType


@dataclass(frozen=True)
class _Asked:
    """What the models are compared on."""

    text: str | None = text_option("Text in UTF-8 whose tokens are predicted; - is standard input.")
    questions: str | None = option(
        "--ask", kind=values.FilePath(str), metavar="FILE.jsonl",
        help='Questions of multiple choice, one a line: {"question": "…", "choices": ["…", "…"], '
        '"answer": 0}. The likeliest choice counts.',
    )  # fmt: skip
    n_ctx: int | None = chunk_option(
        "Tokens of each chunk of the text; those of its second half are predicted."
    )
    n_chunks: int | None = chunks_option()
    special: bool = special_flag()
    save: Path | None = option(
        "--save", kind=values.FilePath(), metavar="FILE",
        help="Keep what the reference predicted, to be given instead of REFERENCE.",
    )  # fmt: skip

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `compare` declares."""
        from ..evaluation import DEFAULT_CHUNK

        return {"n_ctx": DEFAULT_CHUNK}


@dataclass(frozen=True)
class _Opened:
    """What candidates are opened with, each with all of it; the reference is as usual."""

    type_k: tuple[KVType, ...] | None = option(
        "-ctk", "--cache-type-k", kind=values.several(values.kv_type), metavar="TYPE,…",
        help="Type of the keys in the candidates' KV cache; each candidate is compared with each "
        "type: f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.",
    )  # fmt: skip
    type_v: tuple[KVType, ...] | None = option(
        "-ctv", "--cache-type-v", kind=values.several(values.kv_type), metavar="TYPE,…",
        help="Type of the values in it; what is not given is f16.",
    )  # fmt: skip
    n_expert_used: tuple[int, ...] | None = option(
        "--experts", kind=values.several(values.whole_number(1)), metavar="N,…",
        help="Routed experts that a token visits in the candidates.  [default: as many as the "
        "model says]",
    )  # fmt: skip


@dataclass(frozen=True)
class CompareOptions:
    """What `llama4 compare` may be asked."""

    reference: str = argument(kind=click.Path())
    candidates: tuple[str, ...] = argument(
        kind=click.Path(), required=False, nargs=-1, metavar="[CANDIDATE]..."
    )
    asked: _Asked = group(_Asked)
    opened: _Opened = group(_Opened)
    n_threads: int | None = threads_option()
    devices: tuple[str, ...] | None = devices_option()
    workers: tuple[str, ...] | None = workers_option()
    plot: Path | None = option(
        "--plot", kind=values.FilePath(), metavar="FILE.png",
        help="Draw the divergence of each candidate against its size.",
    )  # fmt: skip
    as_json: bool = json_flag()
    verbose: bool = verbose_flag()


@command(CompareOptions)
def compare(options: CompareOptions) -> None:
    """Measure what quantization did to a model.

    REFERENCE is a GGUF, or what --save wrote of one; each CANDIDATE another GGUF of the same
    checkpoint. One model is open at a time. The figures are those of llama-perplexity's
    --kl-divergence, which keeps 404 kB a token of the reference on disk; here it is what counts of
    them. ± is the standard error.

    \b
    llama4 compare scout-bf16.gguf scout-int4.gguf scout-q4_0.gguf --text wiki.test.raw
    llama4 compare scout-bf16.gguf --text wiki.test.raw --save scout.reference
    llama4 compare scout.reference scout-int4.gguf --json | jq '.candidates[].kl.mean'
    llama4 compare scout-bf16.gguf scout-int4.gguf --ask questions.jsonl
    llama4 compare scout-int4.gguf scout-int4.gguf -f wiki.test.raw -ctk f16,q8_0 -ctv q8_0,q4_0
    """
    from ..evaluation import compare as run_compare
    from ..figures import check_figure
    from ..measure.divergence_plot import plot

    show_warnings(verbose=options.verbose)
    if options.plot is not None:
        check_figure(options.plot)
    asked, settings = options.asked, _settings(options)
    with compare_progress() as progress:
        found = run_compare(
            options.reference,
            _candidates(options),
            text=None if asked.text is None else text_of_file(asked.text),
            questions=() if asked.questions is None else _questions(asked.questions),
            special=asked.special,
            save=asked.save,
            progress=progress,
            **settings,
        )
    give(found.as_dict(), found, compare_view, as_json=options.as_json)
    if options.plot is not None:  # what took hours is shown by then
        plot(found, options.plot)


def _candidates(options: CompareOptions) -> list[Candidate]:
    """Each file with each of the settings, types of keys beside types of values as in `bench`."""
    from ..evaluation import Candidate

    opened = options.opened
    if not options.candidates and (opened.type_k or opened.type_v or opened.n_expert_used):
        raise click.UsageError(
            "-ctk, -ctv and --experts are about candidates, and there is none; REFERENCE may be "
            "named again as one"
        )
    settings = product(
        opened.type_k or (None,), opened.type_v or (None,), opened.n_expert_used or (None,)
    )
    return [
        Candidate(name, kv_types(type_k, type_v), n_experts)
        for name, (type_k, type_v, n_experts) in product(options.candidates, settings)
    ]


def _settings(options: CompareOptions) -> dict[str, Any]:
    named = {
        "n_ctx": options.asked.n_ctx,
        "n_chunks": options.asked.n_chunks,
        "n_threads": options.n_threads,
        "devices": options.devices,
        "workers": options.workers,
    }
    return {name: value for name, value in named.items() if value is not None}


def _questions(name: str) -> list[Question]:
    from ..measure.questions import read_questions

    return read_questions(name)
