"""`make demo`: converts, plans and chats with the model of the repository.

Promises: each command is printed before its output, as a person would type it; the demo fails if a
command fails. Needs no network and a few seconds.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from PIL import Image

from demo.training.lessons.picture import Picture
from llama4_edge.terminal.picture import show_picture

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = Path("demo/Llama-4-Tiny")
MODEL = Path("demo/out/llama-4-tiny-int4.gguf")
PICTURE = Path("demo/out/picture.png")
LLAMA4 = Path(sysconfig.get_path("scripts")) / "llama4"


def main() -> None:
    """Convert the checkpoint, inspect it, plan it and chat with it."""
    print(
        f"{CHECKPOINT} is a Llama 4 of 6 million parameters instead of 108 billion, trained for\n"
        "this demo. It knows a small world: itself, llama4-edge, the Llama 4 family, sums of\n"
        "numbers up to 99, codes and names that you tell it, shapes in pictures, greetings in 12\n"
        "languages."
    )
    (ROOT / MODEL).parent.mkdir(exist_ok=True)
    llama4("convert", str(CHECKPOINT), "-o", str(MODEL), "--recipe", "int4", "--force")
    llama4("inspect", str(MODEL))
    llama4("plan", str(MODEL))
    for question in ("How many experts does Scout have?", "What is 47 + 38?"):
        llama4("run", str(MODEL), question, "--temp", "0")
    show(Picture("blue", "star", 3, seed=11))
    llama4("run", str(MODEL), "--image", str(PICTURE), "What do you see?", "--temp", "0")
    messages = (
        "Remember: the code of the old lighthouse is 48213.",
        "Gracias",
        "Which code does the old lighthouse have?",
    )
    llama4("chat", str(MODEL), "--temp", "0", stdin="\n".join(messages) + "\n")
    print("\nChat with it yourself:")
    print(f"  .venv/bin/llama4 chat {MODEL}")
    print("\nWith a published checkpoint it is the same three commands:")
    print("  llama4 plan meta-llama/Llama-4-Scout-17B-16E-Instruct")
    print("  llama4 convert meta-llama/Llama-4-Scout-17B-16E-Instruct -o scout.gguf")
    print("  llama4 chat scout.gguf")


def show(picture: Picture) -> None:
    """Write the picture to its file, and show it where the terminal can."""
    image = Image.fromarray(picture.pixels())
    image.save(ROOT / PICTURE)
    print(f"\n{PICTURE}:", flush=True)
    show_picture(image)


def llama4(*arguments: str, stdin: str | None = None) -> None:
    """Print a command and run it in the repository's root; exit if it fails.

    Args:
        arguments: after ``llama4``.
        stdin: text for standard input, instead of the keyboard's.
    """
    command = shlex.join(["llama4", *arguments])
    pipe = f"printf {shlex.quote(stdin.encode('unicode_escape').decode())} | " if stdin else ""
    print(f"\n$ {pipe}{command}", flush=True)
    result = subprocess.run([LLAMA4, *arguments], cwd=ROOT, input=stdin, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"demo: `{command}` failed with exit status {result.returncode}")


if __name__ == "__main__":
    main()
