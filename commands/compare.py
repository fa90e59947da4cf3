"""`llama4 compare`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal.compare_view import compare_progress, compare_view
from . import values
from .declare import argument, command, flag, group, json_flag, option, verbose_flag
from .output import give, show_warnings

if TYPE_CHECKING:
    from ..measure.questions import Question

_MAX_TEXT = 1 << 30


@dataclass(frozen=True)
class _Asked:
    """What the models are compared on."""

    text: str | None = option(
        "-f", "--text", "--file", kind=values.FilePath(str), metavar="FILE",
        help="Text in UTF-8 whose tokens are predicted; - is standard input.",
    )  # fmt: skip
    questions: str | None = option(
        "--ask", kind=values.FilePath(str), metavar="FILE.jsonl",
        help='Questions of multiple choice, one a line: {"question": "…", "choices": ["…", "…"], '
        '"answer": 0}. The likeliest choice counts.',
    )  # fmt: skip
    n_ctx: int | None = option(
        "-c", "--ctx-size", kind=values.whole_number(8),
        help="Tokens of each chunk of the text; those of its second half are predicted.",
    )  # fmt: skip
    n_chunks: int | None = option(
        "--chunks", kind=values.whole_number(1), help="Read only the first N chunks."
    )
    special: bool = flag(
        "--parse-special",
        help="Take names of control tokens in the text, as <|eot|>, for those tokens.",
    )
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
class CompareOptions:
    """What `llama4 compare` may be asked."""

    reference: str = argument(kind=click.Path())
    candidates: tuple[str, ...] = argument(
        kind=click.Path(), required=False, nargs=-1, metavar="[CANDIDATE]..."
    )
    asked: _Asked = group(_Asked)
    n_threads: int | None = option(
        "-t", "--threads", kind=values.whole_number(1),
        help="CPU threads.  [default: one for each core]",
    )  # fmt: skip
    devices: tuple[str, ...] | None = option(
        "-dev", "--device", kind=values.devices, metavar="NAMES",
        help="GPUs to use, comma-separated; none is the CPU alone.  [default: all]",
    )  # fmt: skip
    workers: tuple[str, ...] | None = option(
        "--workers", kind=values.words, metavar="HOST:PORT,…",
        help="Other machines that run `llama4 worker`, to share each model with.",
    )  # fmt: skip
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
    """
    from ..evaluation import compare as run_compare
    from ..measure.divergence_plot import plot

    show_warnings(verbose=options.verbose)
    asked, settings = options.asked, _settings(options)
    with compare_progress() as progress:
        found = run_compare(
            options.reference,
            options.candidates,
            text=None if asked.text is None else _text(asked.text),
            questions=() if asked.questions is None else _questions(asked.questions),
            special=asked.special,
            save=asked.save,
            progress=progress,
            **settings,
        )
    give(found.as_dict(), found, compare_view, as_json=options.as_json)
    if options.plot is not None:  # what took hours is shown by then
        plot(found, options.plot)


def _settings(options: CompareOptions) -> dict[str, Any]:
    named = {
        "n_ctx": options.asked.n_ctx,
        "n_chunks": options.asked.n_chunks,
        "n_threads": options.n_threads,
        "devices": options.devices,
        "workers": options.workers,
    }
    return {name: value for name, value in named.items() if value is not None}


def _text(name: str) -> str:
    from ..errors import SettingError
    from ..untrusted import Reader

    reader = Reader(SettingError, _MAX_TEXT)
    if name == "-":
        return reader.decoded(sys.stdin.buffer.read(_MAX_TEXT), "standard input")
    return reader.text(name)


def _questions(name: str) -> list[Question]:
    from ..measure.questions import read_questions

    return read_questions(name)
