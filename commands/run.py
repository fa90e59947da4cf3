"""`llama4 run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..errors import ContextFullError, Llama4EdgeError
from ..terminal.answer import AnswerWriter, pieces_of, timings_text
from ..terminal.console import note
from . import values
from .declare import (
    argument,
    command,
    flag,
    given,
    group,
    json_flag,
    option,
    usage_error,
    verbose_flag,
)
from .documents import check_files, files_option, read_files, with_files
from .full_context import cut_off, dropped_text, when_full_option, with_hint
from .loading import opened_model
from .options import (
    AnswerOptions,
    EngineOptions,
    FormOptions,
    PlacementOptions,
    SamplingOptions,
)
from .output import print_json
from .pictures import PictureOptions, with_pictures
from .session import (
    claimed_session,
    documents_to_add,
    kept_session,
    pictures_to_add,
    session_option,
)
from .stdin import read_prompt, unread_pipe

if TYPE_CHECKING:
    from ..chat.answer import Completion
    from ..chat.options import WhenFull
    from ..chat.vocabulary import Vocabulary
    from ..model import Model
    from ..runtime.sampling import Sampling


@dataclass(frozen=True)
class RunOptions:
    """What `llama4 run` may be asked."""

    model: str = argument(kind=click.Path())
    prompt: str | None = argument(required=False)
    document: str | None = argument(required=False, metavar="[-]")
    system: str | None = option(
        "-sys", "--system", "--system-prompt", kind=str, metavar="TEXT",
        help="A system message before the prompt.",
    )  # fmt: skip
    files: tuple[str, ...] = files_option()
    shown: PictureOptions = group(PictureOptions)
    session: str | None = session_option()
    when_full: WhenFull | None = when_full_option()
    raw: bool = flag("--raw", help="Continue the prompt as it is, without chat template.")
    answer: AnswerOptions = group(AnswerOptions)
    form: FormOptions = group(FormOptions)
    logprobs: int | None = option(
        "--logprobs", kind=values.whole_number(0),
        help="With --json: how likely each token was, and the N likeliest in its place.",
    )  # fmt: skip
    as_json: bool = json_flag()
    sampling: SamplingOptions = group(SamplingOptions)
    engine: EngineOptions = group(EngineOptions)
    placement: PlacementOptions = group(PlacementOptions)
    verbose: bool = verbose_flag()


@command(RunOptions)
def run(options: RunOptions) -> None:
    """Answer one prompt, on stdout.

    Without PROMPT, standard input is the prompt. With PROMPT, standard input is read only where it
    is a file given with <, or where - follows PROMPT: it then comes after PROMPT, as a document
    after a question. So a loop that reads lines keeps its lines. A newline at the end of standard
    input is dropped. A PROMPT that begins with a dash goes after --.

    \b
    llama4 run scout.gguf 'Why is the sky blue?'
    llama4 run scout.gguf 'Summarize this:' < report.txt
    llama4 run scout.gguf --file notes/ --file '*.md' 'What is decided?'
    llama4 run scout.gguf --image photo.jpg 'What is this?'
    llama4 run scout.gguf --session book.l4s --file book.md 'Who is the narrator?'
    git diff | llama4 run scout.gguf 'Review this:' -
    llama4 run scout.gguf --raw -n 64 --temp 0 'Once upon a time'
    llama4 run scout.gguf --regex 'yes|no' 'Is the sky blue?'
    llama4 run scout.gguf -jf person.json 'Who wrote Faust?' | jq .name
    """
    from ..chat.conversation import Conversation
    from .chat_loop import opening

    _check(options)
    is_picture = "-" in options.shown.images
    text = read_prompt(options.prompt, document=options.document is not None, is_taken=is_picture)
    if not text.strip():
        raise usage_error("the prompt is empty: give PROMPT, or pipe one in")
    sampling = options.sampling.sampling()
    when_full = options.when_full or Conversation.when_full
    answering = _answering(options, sampling)
    first = opening(options.system)
    documents = read_files(options.files)
    pictures = options.shown.parts()

    def beginning(model: Model) -> Conversation:
        return Conversation(first, model.info.name, sampling, when_full)

    with (
        claimed_session(options.session) as file,
        opened_model(
            options.model,
            "run",
            options.engine,
            options.placement,
            projector=options.shown.projector,
            verbose=options.verbose,
        ) as model,
        kept_session(model, file, beginning(model)) as session,
    ):
        talk = beginning(model) if session is None else session.conversation
        new_documents = documents_to_add(documents, talk.messages)
        check_files(model, new_documents)
        text = with_files(new_documents, text)
        writer = None if options.as_json else AnswerWriter()
        try:
            if options.raw:
                stream = model.generate(text, stream=True, **answering)
            else:
                talk = talk.user(with_pictures(pictures_to_add(pictures, talk.messages), text))
                stream = model.chat(talk.messages, stream=True, when_full=when_full, **answering)
                if session is not None:
                    session.answering(stream)
            for piece in pieces_of(stream):
                if writer is not None:
                    writer.write(piece)
        except ContextFullError as error:
            older = ", or --when-full drop" if when_full == "stop" and session is not None else ""
            hint = f"Shorten the prompt, or give a larger -c{older}."
            raise with_hint(error, hint) from error
        except (KeyboardInterrupt, Llama4EdgeError):
            if writer is not None:
                writer.break_off()
            raise
        if writer is not None:
            writer.end()
        else:
            print_json(answer_record(stream.completion, model.vocabulary))
        if session is not None:
            session.keep(talk.assistant(stream.completion))
    _note_end(options, stream.completion)
    if stream.dropped_messages:
        note(dropped_text(talk.messages, stream.dropped_messages))
    if not is_picture and unread_pipe(options.prompt, document=options.document is not None):
        note("Standard input was not read: a - after the prompt adds it.")


def _check(options: RunOptions) -> None:
    """Refuse what does not go together, before anything is read.

    Raises:
        click.UsageError: some of it does not.
    """
    for name, given_too in (
        ("--system", options.system),
        ("--session", options.session),
        ("--when-full", options.when_full),
        (options.shown.given, options.shown.given),
    ):
        if options.raw and given_too is not None:
            raise usage_error(f"--raw has no place for {name}")
    if options.document not in (None, "-"):
        raise usage_error(f"{options.document!r} is one word too many: quote the prompt")
    is_picture = "-" in options.shown.images
    if is_picture and ("-" in options.files or "-" in (options.prompt, options.document)):
        raise usage_error("--image - takes standard input, which cannot be something else too")
    if options.logprobs is not None and not options.as_json:
        raise usage_error("--logprobs goes with --json, which shows them")


def _answering(options: RunOptions, sampling: Sampling) -> dict[str, Any]:
    """The keywords of ``Model.generate`` that flags ask for."""
    answering = {**given(options.answer), **options.form.settings(), "sampling": sampling}
    if options.logprobs is not None:
        answering |= {"logprobs": True, "top_logprobs": options.logprobs}
    return answering


def _note_end(options: RunOptions, completion: Completion) -> None:
    """Say what an answer took, and whether it was cut off."""
    if options.verbose:
        note(timings_text(completion))
    if cut_off(completion, options.answer.max_tokens):
        note("The answer ends here because the context is full; a larger -c holds more.")


def answer_record(completion: Completion, vocabulary: Vocabulary) -> dict[str, object]:
    """An answer and what it took, for a program to read."""

    def token(number: int, logprob: float) -> dict[str, object]:
        data = vocabulary.token_bytes(number, special=True)
        text = data.decode("utf-8", "replace")
        return {"id": number, "token": text, "bytes": list(data), "logprob": logprob}

    record: dict[str, object] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "stop_string": completion.stop_string,
        "prompt_tokens": completion.prompt_tokens,
        "reused_tokens": completion.reused_tokens,
        "completion_tokens": len(completion.tokens),
        "seed": completion.seed,
        "prefill_seconds": completion.prefill_seconds,
        "decode_seconds": completion.decode_seconds,
    }
    if completion.logprobs is not None:
        record["logprobs"] = [
            {**token(entry.token, entry.logprob), "top_logprobs": [token(*t) for t in entry.top]}
            for entry in completion.logprobs
        ]
    return record
