"""`llama4 pull`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..terminal.console import note
from ..terminal.progress import byte_progress
from . import values
from .declare import argument, command, flag, json_flag, option, usage_error
from .options import revision_option
from .output import give

_EXAMPLE = "For example: llama4 pull unsloth/Llama-4-Scout-17B-16E-Instruct-GGUF Q4_K_M"


@dataclass(frozen=True)
class PullOptions:
    """What `llama4 pull` may be asked."""

    repository: str = argument()
    choice: str | None = argument(required=False)
    directory: Path | None = option(
        "-o", "--output", kind=values.FilePath(), metavar="DIR",
        help="Where the files go.  [default: this directory]",
    )  # fmt: skip
    no_mmproj: bool = flag("--no-mmproj", help="Leave the projector for pictures where it is.")
    revision: str | None = revision_option()
    as_json: bool = json_flag()


@command(PullOptions)
def pull(options: PullOptions) -> None:
    """Fetch a GGUF from the Hugging Face Hub.

    REPOSITORY is org/name, CHOICE one of its files or a quantization such as Q4_K_M; without CHOICE
    the repository must hold one model. All parts of the model are fetched, and the projector for
    images. Each file is checked against the hub's digest, and an interrupted pull resumes.

    \b
    llama4 pull org/Llama-4-Scout-17B-16E-Instruct-GGUF Q4_K_M
    llama4 pull org/Llama-4-Scout-17B-16E-Instruct-GGUF Q4_K_M -o models --json | jq -r .model
    """
    from ..hub.names import other_name, parse_hub_name
    from ..hub.pull import pull as run_pull
    from ..terminal.tables import pulled_view

    name = parse_hub_name(options.repository)
    said = (name.file or name.quantization) if name else None
    if name is None:
        kind, hint = other_name(options.repository) or ("not org/name", _EXAMPLE)
        raise usage_error(f"{options.repository!r} is {kind}. {hint}".rstrip(". "))
    for word, one, other in (
        ("CHOICE", said, options.choice), ("--revision", name.revision, options.revision),
    ):  # fmt: skip
        if one and other and one != other:
            raise usage_error(f"{options.repository!r} says {one}, and {word} {other}")
    try:
        with byte_progress() as progress:
            pulled = run_pull(
                name.repository,
                options.choice or said,
                directory=options.directory or Path(),
                projector=not options.no_mmproj,
                revision=options.revision or name.revision,
                progress=progress,
            )
    except KeyboardInterrupt:
        note("Give the same command again to resume.")
        raise
    give(pulled.as_dict(), pulled, pulled_view, as_json=options.as_json)
