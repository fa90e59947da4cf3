"""What `make demo` runs: the model in the box is converted, planned for, and talked to.

Promises to run the same commands that a person would type, to show each one before its output, and
to fail if any of them fails. Needs no network and a few seconds.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = Path("demo/Llama-4-Tiny")
MODEL = Path("demo/out/llama-4-tiny-int4.gguf")
LLAMA4 = Path(sysconfig.get_path("scripts")) / "llama4"


def main() -> None:
    """Convert the checkpoint, look at it, place it and talk to it."""
    print(
        f"{CHECKPOINT} is a Llama 4 of 6 million parameters instead of 108 billion, trained for\n"
        "this demo. It knows a small world: itself, llama4-edge, the Llama 4 family, sums of\n"
        "numbers up to 99, codes and names that you tell it, greetings in 12 languages."
    )
    (ROOT / MODEL).parent.mkdir(exist_ok=True)
    llama4("convert", str(CHECKPOINT), "-o", str(MODEL), "--recipe", "int4", "--force")
    llama4("inspect", str(MODEL))
    llama4("plan", str(MODEL))
    for question in ("How many experts does Scout have?", "What is 47 + 38?"):
        llama4("run", str(MODEL), question, "--temp", "0")
    said = (
        "Remember: the code of the old lighthouse is 48213.",
        "Gracias",
        "Which code does the old lighthouse have?",
    )
    llama4("chat", str(MODEL), "--temp", "0", said="\n".join(said) + "\n")
    print("\nTalk with it yourself:")
    print(f"  .venv/bin/llama4 chat {MODEL}")
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
    pipe = f"printf {shlex.quote(said.encode('unicode_escape').decode())} | " if said else ""
    print(f"\n$ {pipe}{command}", flush=True)
    result = subprocess.run([LLAMA4, *arguments], cwd=ROOT, input=said, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"demo: `{command}` failed with exit status {result.returncode}")


if __name__ == "__main__":
    main()
