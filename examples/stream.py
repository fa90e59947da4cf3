"""Print an answer while it is made, and end it early.

    python examples/stream.py demo/out/llama-4-tiny-int4.gguf 'What is 47 + 38?'

`make demo` makes that file.
"""

from __future__ import annotations

import sys

import llama4_edge


def main(path: str, question: str, at_most: str = "1000") -> None:
    """Print pieces of text as they come, up to so many characters."""
    characters = 0
    with (
        llama4_edge.Model(path) as model,
        model.chat(question, temperature=0, stream=True) as stream,
    ):
        for piece in stream:
            print(piece, end="", flush=True)
            characters += len(piece)
            if characters >= int(at_most):
                break  # leaving `with` ends the answer
    print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
