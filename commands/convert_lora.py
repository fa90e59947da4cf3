"""`llama4 convert-lora`."""

from __future__ import annotations

from dataclasses import dataclass

import click

from ..terminal.progress import byte_progress
from . import values
from .declare import argument, command, flag, given, json_flag, option
from .options import revision_option
from .output import give


@dataclass(frozen=True)
class ConvertLoraOptions:
    """What `llama4 convert-lora` may be asked."""

    source: str = argument(kind=click.Path(), metavar="ADAPTER")
    output: str | None = option(
        "-o", "--output", "--outfile", kind=values.FilePath(path_type=str), metavar="OUT.gguf",
        help="The file to write.  [default: ADAPTER-TYPE.gguf in this directory]",
    )  # fmt: skip
    base: str | None = option(
        "--base", "--base-model-id", kind=str, metavar="MODEL",
        help="The model that it was trained on: a checkpoint's directory or its config.json, a "
        "GGUF, org/name on the hub, or scout, scout-base or maverick. Only its shapes are read.  "
        "[default: what adapter_config.json names]",
    )  # fmt: skip
    outtype: str | None = option(
        "--outtype", kind=str, metavar="TYPE",
        help="What its matrices are stored as: f32, f16 or bf16.",
    )  # fmt: skip
    dry_run: bool = flag("--dry-run", help="Check everything and report, but write nothing.")
    revision: str | None = revision_option()
    force: bool = flag("--force", help="Replace the output if it exists.")
    as_json: bool = json_flag()

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `convert_lora` declares."""
        from ..convert.lora.file import DEFAULT_OUT_TYPE

        return {"outtype": DEFAULT_OUT_TYPE}


@command(ConvertLoraOptions)
def convert_lora(options: ConvertLoraOptions) -> None:
    """Convert a LoRA adapter to a GGUF file.

    ADAPTER is a directory as PEFT saves one, with adapter_config.json and
    adapter_model.safetensors; or a repository on the Hugging Face Hub. The file goes with a model:
    llama4 run MODEL --lora OUT.gguf

    Everything is checked before anything is written, against the shapes of the base model. What
    llama.cpp cannot apply is refused by name; llama4 convert --merge-lora merges it instead.

    \b
    llama4 convert-lora my-adapter -o my-adapter.gguf
    llama4 convert-lora org/adapter --base Llama-4-Scout-17B-16E-Instruct --outtype f16
    """
    from ..conversion import convert_lora as run_conversion
    from ..terminal.tables import report_view

    settings = given(options)
    source, output = settings.pop("source"), settings.pop("output", None)
    settings.pop("as_json", None)
    with byte_progress() as progress:
        report = run_conversion(source, output, progress=progress, **settings)
    give(report.as_dict(), report, report_view, as_json=options.as_json)
