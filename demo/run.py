"""What `make demo` runs: a checkpoint made on the spot is converted, planned for, and talked to.

Promises to run the same commands that a person would type, to show each one before its output, and
to fail if any of them fails. Needs no network and about half a minute.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo.checkpoint import SCOUT_LIKE, write_checkpoint  # noqa: E402 (found by the line above)

CHECKPOINT = Path("demo/out/Llama-4-Tiny")
MODEL = Path("demo/out/llama-4-tiny-int4.gguf")
LLAMA4 = Path(sysconfig.get_path("scripts")) / "llama4"


def main() -> None:
    """Write the checkpoint, then convert it, look at it, place it and talk to it."""
    write_checkpoint(ROOT / CHECKPOINT, SCOUT_LIKE)
    print(
        f"Wrote {CHECKPOINT}: a Llama 4 in Scout's layout (16 experts a layer, sharded bf16\n"
        "safetensors), 15 million parameters instead of 108 billion. Its weights are random, so\n"
        "what it says is nonsense; a trained one comes later."
    )
    llama4("convert", str(CHECKPOINT), "-o", str(MODEL), "--recipe", "int4", "--force")
    llama4("inspect", str(MODEL))
    llama4("plan", str(MODEL))
    llama4("run", str(MODEL), "Why is the sky blue?", "-n", "48", "--seed", "1")
    llama4("chat", str(MODEL), "-n", "32", "--seed", "1", said="Hello! Who are you?\n")
    print("\nWith a published checkpoint it is the same three commands:")
    print("  llama4 plan meta-llama/Llama-4-Scout-17B-16E-Instruct")
    print("  llama4 convert meta-llama/Llama-4-Scout-17B-16E-Instruct -o scout.gguf")
    print("  llama4 chat scout.gguf")


def llama4(*arguments: str, said: str | None = None) -> None:
    """Show a command and run it from the repository's root; exit if it fails.

    Args:
        arguments: what follows ``llama4``.
        said: what comes through a pipe instead of a keyboard.
    """
    command = shlex.join(["llama4", *arguments])
    pipe = f"echo {shlex.quote(said.rstrip())} | " if said else ""
    print(f"\n$ {pipe}{command}", flush=True)
    result = subprocess.run([LLAMA4, *arguments], cwd=ROOT, input=said, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"demo: `{command}` failed with exit status {result.returncode}")


if __name__ == "__main__":
    main()
