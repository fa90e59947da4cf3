"""Ask a model one question.

    python examples/ask.py demo/out/llama-4-tiny-int4.gguf 'How many experts does Scout have?'

`make demo` makes that file.
"""

from __future__ import annotations

import sys

import llama4_edge


def main(path: str, question: str) -> None:
    """Print the likeliest answer, and how fast it came."""
    with llama4_edge.Model(path) as model:
        answer = model.chat(question, temperature=0)
    print(answer.text)
    print(
        f"{answer.finish_reason}, {answer.decode_tokens_per_second:.0f} tokens/s", file=sys.stderr
    )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
