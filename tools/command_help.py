"""The help of every command, as a page of the reference.

Promises docs/reference/commands.md, the same on every machine. With ``--check`` nothing is written,
and the exit code is 1 where the page is not current:

    python -m tools.command_help
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from llama4_edge.cli import main as llama4

ROOT = Path(__file__).resolve().parents[1]
# A default that lies below the home directory is the same for everybody.
os.environ["XDG_CACHE_HOME"] = "~/.cache"
PAGE = ROOT / "docs" / "reference" / "commands.md"
WIDTH = 88
HEADER = """\
# Commands

What `--help` says. This page is written by `python -m tools.command_help`, and `make lint` checks
that it is current.

Results go to stdout, everything else to stderr. The exit code is 0 when it was done, 1 with one
`error: …` line when it was not, 2 for a command line that makes no sense, 130 after Ctrl-C, and 141
when the reader of a pipe went away. With `--json` errors are JSON documents on stdout.

On a terminal, control characters of a model's answer and of a file's texts are shown as signs;
through a pipe an answer goes as the model made it.
"""


def page() -> str:
    """The page: the group's help, then that of each command in the order of the group."""
    top = _context(llama4, "llama4", None)
    parts = [HEADER, _section(top)]
    for name in llama4.list_commands(top):
        command = llama4.get_command(top, name)
        assert command is not None
        parts.append(_section(_context(command, name, top)))
    return "\n".join(parts)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    # click caps the width of a terminal unless told otherwise.
    return click.Context(
        command, parent, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH
    )


def _section(context: click.Context) -> str:
    text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
    return f"## {context.command_path}\n```text\n{text}\n```\n"


def main() -> int:
    """Write the page, or say whether it is current."""
    text = page()
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{PAGE.relative_to(ROOT)} is old: run python -m tools.command_help\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
