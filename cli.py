"""The `llama4` command: the group of commands, and how the process ends.

Promises: results on stdout, all else on stderr; exit code 0 when it was done, 1 with one
``error: …`` line when it was not, 2 for a command line that makes no sense, 130 after Ctrl-C, 141
when the reader of a pipe went away. Does not know what the commands do.

A command's module is imported when it is called, so that ``--help`` loads nothing.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from ._version import __version__
from .commands import JSON, TROUBLE, VERBOSE
from .errors import Llama4EdgeError, did_you_mean
from .terminal.console import abandon_stdout, complain, fill_closed_streams, speak_utf8

# Each command is a function of the module of its name in commands/; in the order of a model's life.
COMMANDS = {
    "convert": "Convert a checkpoint, or a GGUF, to a GGUF file, in one pass.",
    "convert-lora": "Convert a LoRA adapter to a GGUF file.",
    "pull": "Fetch a GGUF from the Hugging Face Hub.",
    "split": "Divide a GGUF into parts, as llama-gguf-split does.",
    "merge": "Put the parts of a GGUF together into one file.",
    "inspect": "Show what a GGUF, checkpoint, session or imatrix holds.",
    "plan": "Show what fits where, before anything is loaded or downloaded.",
    "run": "Answer one prompt, on stdout.",
    "chat": "Talk with a model.",
    "serve": "Serve a model over HTTP, to programs and to browsers.",
    "calibrate": "Measure what a model multiplies its weights with.",
    "compare": "Measure what quantization did to a model.",
    "bench": "Measure how fast a model reads and answers.",
    "worker": "Lend this machine to a model that runs on another one.",
    "doctor": "Check what is installed, and what is missing.",
}
# What other programs call them.
_OTHER_WORDS = {
    "help": "--help",
    "version": "--version",
    "download": "pull",
    "fetch": "pull",
    "imatrix": "calibrate",
    "perplexity": "compare",
    "quantize": "convert",
    "requantize": "convert",
    "gguf-split": "split",
    "diff": "inspect",
    "show": "inspect",
    "fit": "plan",
    "ask": "run",
    "generate": "run",
    "rpc-server": "worker",
    "server": "serve",
}


class _Commands(click.Group):
    """The group of commands, and the one place where an error becomes a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in their order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = import_module(f".commands.{name}", __package__)
        command: click.Command = vars(module)[name]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word, which may be one that does not exist."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            other = _OTHER_WORDS.get(name)
            hint = f"Did you mean {other}?" if other else did_you_mean(name, COMMANDS)
            ctx.fail(f"No such command {name!r}." + (f" {hint}" if hint else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with a line each, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **extra: Any) -> Any:
        """Set the process up, and go."""
        fill_closed_streams()
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

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the options before the name of a command."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            _refuse(error)
        except KeyboardInterrupt:
            _interrupted()

    def invoke(self, ctx: click.Context) -> Any:
        """Read the rest of the command line, and do what it says."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _refuse(error, as_json=bool(ctx.meta.get(JSON)))
        except Llama4EdgeError as error:
            _fail(ctx, error)
        except KeyboardInterrupt:
            _interrupted()
        except BrokenPipeError:
            # The reader has what it wanted. Whatever is still buffered has nowhere to go.
            abandon_stdout()
            ctx.exit(141)
        except MemoryError:
            # Said without what draws errors: there may be no memory for it either.
            sys.stderr.write("error: this machine has not enough memory for that\n")
            ctx.exit(1)
        except ImportError as error:
            _fail(ctx, _import_failure(error))
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            problem = "no more threads can be started"
            hint = "Give this process more memory (ulimit -v) or threads (ulimit -u)."
            _fail(ctx, Llama4EdgeError(problem, hint=hint))
        except OSError as error:
            if error.filename is None:
                raise
            name = os.fsdecode(error.filename)
            _fail(ctx, Llama4EdgeError(f"cannot use {name}", found=error.strerror))


def _import_failure(error: ImportError) -> Llama4EdgeError:
    """The error that a package is missing, damaged, or has no memory to be loaded into."""
    # NumPy explains at length, and ends in what the system said.
    reason = str(error).strip().splitlines()[-1].removeprefix("Original error was: ")
    return Llama4EdgeError(
        f"the module {error.name} cannot be loaded" if error.name else "a module cannot be loaded",
        found=reason,
        hint="Install llama4-edge again, or give it more memory: ulimit -v shows a limit.",
    )


def _interrupted() -> NoReturn:
    click.echo("interrupted", err=True)
    raise click.exceptions.Exit(130)


def _refuse(error: click.UsageError, *, as_json: bool = False) -> NoReturn:
    """How the command is used, and one line on stderr; or the error as JSON."""
    problem = error.format_message()
    if as_json:
        from .commands.output import print_json

        print_json({**Llama4EdgeError(problem).as_dict(), "error": "UsageError"})
    else:
        if error.ctx is not None:
            help_flag = f"{error.ctx.command_path} --help"
            click.echo(f"{error.ctx.get_usage()}\nTry '{help_flag}'.\n", err=True)
        complain(problem)
    raise click.exceptions.Exit(error.exit_code)


def _fail(ctx: click.Context, error: Llama4EdgeError) -> None:
    """One line on stderr, with the flags of the settings it names; or the error as JSON."""
    from .commands.flags import with_flags
    from .commands.output import print_json

    if ctx.meta.get(JSON):
        print_json(error.as_dict())
    else:
        complain(with_flags(str(error)))
    ctx.exit(ctx.meta.get(TROUBLE, 1))


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, "--version", prog_name="llama4")
@click.option("-v", "--verbose", is_flag=True, help="llama.cpp's log and timings on stderr.")
@click.pass_context
def main(ctx: click.Context, verbose: bool) -> None:
    """Run Meta's Llama 4 family offline.

    \b
    llama4 convert Llama-4-Scout-17B-16E-Instruct -o scout.gguf
    llama4 chat scout.gguf

    Completion of commands and options in bash (or zsh, fish):

    \b
    eval "$(_LLAMA4_COMPLETE=bash_source llama4)"
    """
    speak_utf8()
    ctx.meta[VERBOSE] = verbose
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
