"""`llama4 calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from ..terminal.calibrate_view import calibrate_progress, calibrate_view
from ..terminal.console import note
from . import values
from .declare import argument, command, flag, group, json_flag, option, verbose_flag
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


@dataclass(frozen=True)
class _Read:
    """What the model reads."""

    text: str | None = text_option("Text in UTF-8, read in chunks; - is standard input.")
    conversations: str | None = option(
        "--chat", kind=values.FilePath(str), metavar="FILE.jsonl",
        help='Conversations, read in the chat format, one a line: {"messages": [{"role": "user", '
        '"content": …}, …]}. A part {"type": "image", "image": FILE} is a picture.',
    )  # fmt: skip
    n_ctx: int | None = chunk_option("Tokens of each chunk of the text.")
    n_chunks: int | None = chunks_option()
    first_chunk: int | None = option(
        "--chunk", "--from-chunk", kind=values.whole_number(0), help="Leave the first N chunks out."
    )
    special: bool = special_flag()
    process_output: bool = flag("--process-output", help="Have statistics of output.weight too.")
    no_perplexity: bool = flag(
        "--no-ppl", help="Do not compute the perplexity of the text, nor any logits."
    )

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `calibrate` declares."""
        from ..calibration import DEFAULT_CHUNK

        return {"n_ctx": DEFAULT_CHUNK}


@dataclass(frozen=True)
class CalibrateOptions:
    """What `llama4 calibrate` may be asked."""

    model: str = argument(kind=click.Path())
    output: str | None = option(
        "-o", "--output", kind=values.FilePath(str), metavar="FILE.gguf", help="The file to write."
    )
    read: _Read = group(_Read)
    merge: tuple[str, ...] = option(
        "--in-file", "--merge", kind=values.FilePath(str), metavar="FILE", multiple=True,
        help="Add the statistics of this file, of either form; may be given again. Without --text "
        "and --chat, files are merged alone.",
    )  # fmt: skip
    projector: str | None = option(
        "-mm", "--mmproj", kind=values.FilePath(str), metavar="FILE",
        help="The GGUF of the vision tower.  [default: the only mmproj-*.gguf beside the model]",
    )  # fmt: skip
    n_threads: int | None = threads_option()
    devices: tuple[str, ...] | None = devices_option()
    workers: tuple[str, ...] | None = workers_option()
    as_json: bool = json_flag()
    verbose: bool = verbose_flag()

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `calibrate` declares."""
        from ..calibration import DEFAULT_OUTPUT

        return {"output": DEFAULT_OUTPUT}


@command(CalibrateOptions)
def calibrate(options: CalibrateOptions) -> None:
    """Measure what a model multiplies its weights with.

    MODEL is a GGUF, best in bf16 or q8_0. The result is what llama.cpp calls an importance matrix:
    of each tensor, and of each expert, the sums of the squares of its inputs. `llama4 convert
    --imatrix` and llama-quantize take it.

    Experts that saw fewer than 32 tokens are named. They get what the others of their layer saw
    beside their own, and what was measured stays in the file for merging.

    An interrupted calibration resumes when the same command is given again.

    \b
    llama4 calibrate scout-bf16.gguf --text calibration.txt -o scout.imatrix.gguf
    llama4 calibrate scout-bf16.gguf --text more.txt --in-file scout.imatrix.gguf -o both.gguf
    llama4 calibrate scout-bf16.gguf --chat conversations.jsonl --mmproj mmproj-scout-f16.gguf
    llama4 calibrate scout-bf16.gguf --in-file one.gguf --in-file other.gguf -o both.gguf
    llama4 calibrate scout-bf16.gguf --text calibration.txt --json | jq .coverage
    """
    from ..calibration import calibrate as run_calibration
    from ..chat.conversation_file import read_conversations

    show_warnings(verbose=options.verbose)
    read = options.read
    named: dict[str, Any] = {
        "output": options.output,
        "n_ctx": read.n_ctx,
        "n_chunks": read.n_chunks,
        "first_chunk": read.first_chunk,
        "projector": options.projector,
        "n_threads": options.n_threads,
        "devices": options.devices,
        "workers": options.workers,
    }
    sources = [name for name in (read.text, read.conversations) if name is not None]
    try:
        with calibrate_progress() as progress:
            found = run_calibration(
                options.model,
                text=None if read.text is None else text_of_file(read.text),
                conversations=()
                if read.conversations is None
                else read_conversations(read.conversations),
                merge=options.merge,
                datasets=sources,
                special=read.special,
                process_output=read.process_output,
                perplexity=not read.no_perplexity,
                progress=progress,
                **{name: value for name, value in named.items() if value is not None},
            )
    except KeyboardInterrupt:
        note("Give the same command again to resume.")
        raise
    give(found.as_dict(), found, calibrate_view, as_json=options.as_json)
