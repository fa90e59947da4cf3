"""A conversation that remembers: each line of standard input is a message.

    python examples/chat.py demo/out/llama-4-tiny-int4.gguf lighthouse.json

    Remember: the code of the old lighthouse is 48213.
    Which code does the old lighthouse have?

Ctrl-D ends it. The conversation is saved in the file, if one is given, and goes on there the next
time. `make demo` makes the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llama4_edge import Conversation, Model, Sampling


def main(path: str, file: str | None = None) -> None:
    """Answer line after line. What was read of the conversation is not read again."""
    talk = Conversation(model=path, sampling=Sampling(temperature=0))
    if file is not None and Path(file).exists():
        talk = Conversation.load(file)
    with Model(path) as model:
        for line in sys.stdin:
            talk = talk.user(line.rstrip("\n"))
            answer = model.chat(talk)
            talk = talk.assistant(answer)
            print(answer.text, flush=True)
    if file is not None:
        talk.save(file)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
