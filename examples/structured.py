"""Ask for answers that a program can read: of the form of a regular expression, or JSON.

    python examples/structured.py demo/out/llama-4-tiny-int4.gguf

`make demo` makes that file.
"""

from __future__ import annotations

import json
import re
import sys

import llama4_edge

EXPERTS = r"(Scout|Maverick) has ([0-9]+) experts\."
SCHEMA = {
    "type": "object",
    "properties": {"experts": {"type": "integer", "enum": [16, 128]}},
    "required": ["experts"],
    "additionalProperties": False,
}


def main(path: str) -> None:
    """Print what was asked for, as values."""
    with llama4_edge.Model(path) as model:
        for name in ("Scout", "Maverick"):
            question = f"How many experts does {name} have?"
            answer = model.chat(question, regex=EXPERTS, temperature=0, max_tokens=40)
            if match := re.fullmatch(EXPERTS, answer.text):
                print(match[1], int(match[2]))
        record = model.chat("How many experts does Scout have?", response_format=SCHEMA)
        print(json.loads(record.text)["experts"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
