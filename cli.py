"""The `llama4` command: what did the person ask, and how is the answer shown?

Promises: one function a command; results on stdout, all else on stderr; exit code 0 when it was
done, 1 with one ``error: …`` line when it was not, 2 for a command line that makes no sense, 130
after Ctrl-C, 141 when the reader of a pipe went away. Does not know how anything is done.

Rooms are imported inside the commands, so that ``--help`` never loads llama.cpp.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from . import __version__
from .commands.bench import bench_options
from .commands.conversion import conversion_options
from .commands.loading import opened_model
from .commands.options import (
    ANSWER,
    JSON,
    VERBOSE,
    WORKER,
    CommandWithRecipes,
    json_option,
    model_options,
    revision_option,
    sampling_of,
    verbose_option,
    worker_options,
)
from .commands.plan import plan_options
from .errors import ContextFullError, Llama4EdgeError
from .terminal.answer import AnswerWriter, context_ran_out, full_context, timings_text
from .terminal.console import (
    abandon_stdout,
    at_terminal,
    complain,
    fill_closed_streams,
    note,
    show,
    show_log,
    speak_utf8,
)
from .terminal.progress import check_progress, conversion_progress, pull_progress
from .terminal.prompt import Lines, read_prompt


class _Commands(click.Group):
    """The group of commands, and the one place where an error becomes a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a model's life, as they stand below."""
        return list(self.commands)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Set the process up, and go."""
        fill_closed_streams()
        # When ggml gives up it would start a debugger, if there is one, for a page of backtrace.
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")
        if sys.stdout is None:
            # Said before the work: a conversion takes hours.
            complain("standard output is closed; for no output, send it to /dev/null")
            sys.exit(1)
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Of stdout, where an error in JSON has no place either.
            abandon_stdout()
            complain("no space left on the disk of the output")
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Llama4EdgeError as error:
            _fail(ctx, error)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # The reader has what it wanted. Whatever is still buffered has nowhere to go.
            abandon_stdout()
            ctx.exit(141)
        except MemoryError:
            _fail(ctx, Llama4EdgeError("this machine has not enough memory for that"))
        except OSError as error:
            if error.filename is None:
                raise
            named = os.fsdecode(error.filename)
            _fail(ctx, Llama4EdgeError(f"cannot use {named}", found=error.strerror))


def _fail(ctx: click.Context, error: Llama4EdgeError) -> None:
    if ctx.meta.get(JSON):
        _print_json(error.as_dict())
    else:
        complain(str(error))
    ctx.exit(1)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


@click.group(cls=_Commands, invoke_without_command=True)
@click.version_option(__version__, "--version", prog_name="llama4")
@verbose_option
@click.pass_context
def main(ctx: click.Context) -> None:
    """Run Meta's Llama 4 family offline.

    \b
    llama4 convert Llama-4-Scout-17B-16E-Instruct -o scout.gguf
    llama4 chat scout.gguf

    Completion of commands and options in bash (or zsh, fish):

    \b
    eval "$(_LLAMA4_COMPLETE=bash_source llama4)"
    """
    speak_utf8()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command(cls=CommandWithRecipes)
@click.argument("source", type=click.Path(path_type=Path))
@conversion_options
@json_option
def convert(
    source: Path,
    output: Path | None,
    recipe: str | None,
    types: tuple[tuple[str, str], ...],
    threads: int | None,
    dry_run: bool,
    revision: str | None,
    keep_source: bool,
    split_size: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a checkpoint into a GGUF file, in one pass.

    SOURCE is a directory with config.json, tokenizer.json and safetensors, as published; or a
    repository on the Hugging Face Hub, of which one shard is fetched while another is encoded, so
    that it takes the disk of the output and two shards.

    Nothing is written before everything is checked, and nothing has the final name before it is
    whole. The command that was interrupted goes on where it stopped when it is given again.

    \b
    llama4 convert Llama-4-Scout-17B-16E-Instruct
    llama4 convert meta-llama/Llama-4-Scout-17B-16E-Instruct --recipe int8 -o scout-int8.gguf
    llama4 convert SOURCE --type 'ffn_down_exps=q6_k' --dry-run
    """
    from .convert import convert as run_conversion
    from .quant import DEFAULT_RECIPE
    from .terminal.tables import report_view

    try:
        with conversion_progress() as progress:
            report = run_conversion(
                source,
                output,
                recipe=recipe or DEFAULT_RECIPE,
                types=types,
                split_size=split_size,
                revision=revision,
                keep_source=keep_source,
                force=force,
                dry_run=dry_run,
                threads=threads,
                progress=progress,
            )
    except KeyboardInterrupt:
        note("The same command goes on where this one stopped.")
        raise
    if as_json:
        _print_json(report.as_dict())
    else:
        show(report_view(report))


@main.command()
@click.argument("repository")
@click.argument("choice", required=False)
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Where the files go.  [default: this directory]",
)
@revision_option
@json_option
def pull(
    repository: str, choice: str | None, directory: Path, revision: str | None, as_json: bool
) -> None:
    """Fetch a GGUF from the Hugging Face Hub.

    REPOSITORY is org/name, CHOICE one of its files or a quantization such as Q4_K_M; where there is
    only one model, it may be left out. All parts of the model come, and the projector for images.
    Each file is checked against the hub's digest, and an interrupted pull goes on where it stopped.

    \b
    llama4 pull org/Llama-4-Scout-17B-16E-Instruct-GGUF Q4_K_M
    llama4 pull org/Llama-4-Scout-17B-16E-Instruct-GGUF Q4_K_M -o models --json | jq -r .model
    """
    from .hub.names import parse_repository
    from .hub.pull import pull as run_pull
    from .terminal.tables import pulled_view

    name = parse_repository(repository)
    if name is None:
        raise click.BadParameter(f"{repository!r} is not org/name", param_hint="REPOSITORY")
    try:
        with pull_progress() as progress:
            pulled = run_pull(
                name, choice, directory=directory, revision=revision, progress=progress
            )
    except KeyboardInterrupt:
        note("The same command goes on where this one stopped.")
        raise
    if as_json:
        _print_json(pulled.as_dict())
    else:
        show(pulled_view(pulled))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="A line for each tensor too.")
@click.option("--check", is_flag=True, help="Read all of a GGUF, all its parts, and find damage.")
@json_option
@click.pass_context
def inspect(ctx: click.Context, file: Path, tensors: bool, check: bool, as_json: bool) -> None:
    """Show what a GGUF or a checkpoint holds.

    FILE is a GGUF, or a checkpoint directory: its metadata, and its tensors by role with their
    types, bytes and bits per weight. With --check, exits with 1 when something is damaged.

    \b
    llama4 inspect scout.gguf
    llama4 inspect scout.gguf --check
    llama4 inspect Llama-4-Scout-17B-16E-Instruct --tensors
    llama4 inspect scout.gguf --json | jq .bits_per_weight
    """
    from .inspection import inspect as run_inspection
    from .terminal.tables import damage_view, summary_view

    if check and file.is_dir():
        raise click.UsageError("--check reads a GGUF; a checkpoint is checked as it is converted")
    with check_progress() if check else nullcontext() as progress:
        inspection = run_inspection(file, check=check, progress=progress)
    if as_json:
        _print_json(inspection.as_dict())
    else:
        show(summary_view(inspection.summary, tensors=tensors))
        if inspection.damage is not None:
            show("")
            show(damage_view(inspection.damage))
    ctx.exit(1 if inspection.damaged else 0)


@main.command(cls=CommandWithRecipes)
@click.argument("model", required=False)
@plan_options
@json_option
@verbose_option
@click.pass_context
def plan(ctx: click.Context, model: str | None, as_json: bool) -> None:
    """Say what fits where, before anything is loaded, or downloaded.

    MODEL is a GGUF, a checkpoint directory, a config.json, a repository on the Hugging Face Hub, or
    one of scout, scout-base, maverick, behemoth. Without flags that place it, the placement that
    hurts least is found, and counted by llama.cpp itself. Exits with 1 when it does not fit. The
    vision tower and its projector are weighed too, but on no device: nothing loads them yet.

    \b
    llama4 plan scout --gpu rtx4090 --ram 64G --ctx max
    llama4 plan maverick --gpu 'h100 x4' --recipe int8 --json | jq .devices
    llama4 plan --table
    llama4 plan scout.gguf --check
    """
    from .commands.plan import answer

    show_log(verbose=ctx.meta[VERBOSE])
    said = answer(ctx, model)
    if as_json:
        _print_json(said.record)
    else:
        show(said.view)
    ctx.exit(0 if said.good else 1)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("-sys", "--system", metavar="TEXT", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without chat template.")
@model_options
@verbose_option
@click.pass_context
def run(ctx: click.Context, model: Path, prompt: str | None, system: str | None, raw: bool) -> None:
    """Answer one prompt, on stdout.

    PROMPT comes from the command line, from a pipe, or from both: then what is piped follows it, as
    a document follows a question. "-" reads standard input at a terminal too. A newline at the end
    of standard input is left out.

    \b
    llama4 run scout.gguf 'Why is the sky blue?'
    llama4 run scout.gguf 'Summarize this:' < report.txt
    llama4 run scout.gguf --raw -n 64 --temp 0 'Once upon a time'
    """
    from .chat.conversation import Message
    from .terminal.chat import opening

    if raw and system is not None:
        raise click.UsageError("--raw has no place for --system")
    text = read_prompt(prompt)
    if not text.strip():
        raise click.UsageError("the prompt is empty: give PROMPT, or pipe one in")
    sampling = sampling_of(ctx)
    answering = ctx.meta.get(ANSWER, {})
    first = opening(system)
    with opened_model(ctx, model) as loaded:
        writer = AnswerWriter()
        try:
            if raw:
                stream = loaded.generate(text, stream=True, sampling=sampling, **answering)
            else:
                messages = (*first, Message("user", text))
                stream = loaded.chat(messages, stream=True, sampling=sampling, **answering)
            for piece in stream:
                writer.write(piece)
        except ContextFullError as error:
            raise full_context(error, "Shorten the prompt, or give a larger -c.") from error
        except (KeyboardInterrupt, Llama4EdgeError):
            writer.break_off()
            raise
        writer.end()
    if ctx.meta[VERBOSE]:
        note(timings_text(stream.completion))
    if context_ran_out(stream.completion, answering.get("max_tokens")):
        note("The answer ends here because the context is full; a larger -c holds more.")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-sys", "--system", metavar="TEXT", help="A system message before the chat.")
@model_options
@verbose_option
@click.pass_context
def chat(ctx: click.Context, model: Path, system: str | None) -> None:
    """Talk with a model.

    Enter sends; Alt-Enter, or a backslash at the end of a line, begins a new one. Ctrl-C stops an
    answer, Ctrl-D leaves, /help lists the commands. From a pipe, each line is a message.

    \b
    llama4 chat scout.gguf
    llama4 chat scout.gguf --system 'Answer in one sentence.' -c 32768
    llama4 chat scout.gguf < questions.txt
    """
    from .chat.conversation import Conversation
    from .terminal.chat import Chat, opening, terminal_source

    sampling = sampling_of(ctx)
    answering = ctx.meta.get(ANSWER, {})
    first = opening(system)
    interactive = at_terminal()
    source = terminal_source() if interactive else Lines()
    with opened_model(ctx, model) as loaded:
        # A model without a chat template is refused here, and not at each message.
        _ = loaded.template
        talk = Chat(
            lambda messages: loaded.chat(messages, stream=True, sampling=sampling, **answering),
            source,
            Conversation(first, model=loaded.info.name, sampling=sampling),
            interactive=interactive,
            max_tokens=answering.get("max_tokens"),
        )
        if interactive:
            note(f"{loaded.info.name}, {loaded.engine.settings.n_ctx:,} tokens of context. /help")
        talk.run()
    # Somebody at a terminal has seen the errors; a script asks for the exit code.
    ctx.exit(1 if talk.failures and not interactive else 0)


@main.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@bench_options
@click.option("--keep", is_flag=True, help="Leave the synthetic model there for the next time.")
@click.option("--no-warmup", is_flag=True, help="Measure the first run of each test too.")
@json_option
@verbose_option
@click.pass_context
def bench(
    ctx: click.Context, model: Path | None, keep: bool, no_warmup: bool, as_json: bool
) -> None:
    """Measure how fast a model reads and answers.

    The same tests, tokens and field names as llama-bench, so that results compare. Without flags
    that place it, the model goes where `llama4 plan` says. With --synthetic nothing need be
    downloaded: the file has a model's true geometry and types, random weights and no tokenizer,
    and is removed afterwards.

    \b
    llama4 bench scout.gguf
    llama4 bench scout.gguf -p 512 -n 128 -d 0,4096,32768 --json
    llama4 bench --synthetic scout --recipe int4 --layers 4
    """
    from .commands.bench import bench_view, measure

    show_log(verbose=ctx.meta[VERBOSE])
    results = measure(ctx, model, keep=keep, warmup=not no_warmup)
    if as_json:
        _print_json([result.as_dict() for result in results])
    else:
        show(bench_view(results))


@main.command()
@worker_options
@verbose_option
@click.pass_context
def worker(ctx: click.Context) -> None:
    """Lend this machine to a model that runs on another one.

    Its GPUs, or else its CPU, take part of a model: `llama4 run MODEL --workers HOST:PORT` there.
    It serves one program at a time, until Ctrl-C. There is no password and no encryption: anyone
    who reaches the port can use it.

    \b
    llama4 worker
    llama4 worker --host 192.168.0.7
    """
    from .runtime.workers.worker import running_worker
    from .terminal.tables import worker_view

    show_log(verbose=ctx.meta[VERBOSE])
    with running_worker(**ctx.meta.get(WORKER, {})) as here:
        show(worker_view(here))
        here.wait()


@main.command()
@json_option
@verbose_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what is installed, and what is missing.

    What is built into llama.cpp, which devices there are and how much memory they have, and for
    each thing that is missing the command that adds it. Exits with 1 when something is broken.

    \b
    llama4 doctor
    llama4 doctor --json | jq .devices
    """
    from .runtime.doctor import doctor as run_diagnosis
    from .terminal.tables import diagnosis_view

    show_log(verbose=ctx.meta[VERBOSE])
    diagnosis = run_diagnosis()
    if as_json:
        _print_json(diagnosis.as_dict())
    else:
        show(diagnosis_view(diagnosis))
    ctx.exit(0 if diagnosis.healthy else 1)
