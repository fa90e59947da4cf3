"""Let the model call a function, and give it the result.

    python examples/tools.py demo/out/llama-4-tiny-int4.gguf 'Light in the hall, please.'

`make demo` makes that file. The model in the box was not trained with tools, so it is made to call
one; Scout decides by itself without `tool_choice`.
"""

from __future__ import annotations

import sys
from typing import Literal

from llama4_edge import Model, run_tools


def switch(lamp: Literal["kitchen", "hall"], on: bool) -> str:
    """Switch a lamp.

    Args:
        lamp: which one
        on: whether it is to shine
    """
    return f"The lamp in the {lamp} is {'on' if on else 'off'}."


def main(path: str, question: str) -> None:
    """Print each call with its result, and then the answer."""
    with Model(path) as model:
        run = run_tools(
            model, question, [switch], tool_choice="switch", temperature=0, max_tokens=100
        )
    for one in run.rounds:
        for result in one.results:
            print(result.call.name, dict(result.call.arguments), "->", result.content)
    print(run.text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
