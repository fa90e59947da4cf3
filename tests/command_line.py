"""How tests call the `llama4` command, and what the API answers to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from llama4_edge import Model, Sampling

Command = Callable[..., Result]

RUN = ("-n", 8, "--temp", 0)


def the_error(result: Result, exit_code: int = 1) -> str:
    """The one line of error that `result` consists of."""
    assert (result.exit_code, result.stdout) == (exit_code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def greedy(model: Path, prompt: str, tokens: int, *, raw: bool = False, system: str = "") -> str:
    """What the API answers at temperature 0."""
    with Model(model) as loaded:
        if raw:
            return loaded.generate(
                prompt, max_tokens=tokens, sampling=Sampling(temperature=0.0)
            ).text
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        return loaded.chat(messages, max_tokens=tokens, sampling=Sampling(temperature=0.0)).text
