"""What drafts bring: acceptance, and tokens a second with and without them in turn.

    python -m benchmarks.drafts MODEL [--threads 1] [--rounds 5] [--only replay] [--tokens 600]

"own" answers are the model's, greedily, to what the demo model was trained on: lists to repeat, and
conversations. "replay" makes the model write given texts: each token is the next one of the text,
whatever the logits are, so that times are the model's and the text is what a better model would
say. There it copies a page, renames what a program calls its requests, or writes one page of the
documentation after another one was read. Replays work with any model, one of random weights too.

Rates are tokens a second of decoding, the best round of each, which is more reliable on a machine
with other work; drafts are counted in the last round. Costs are batches with a draft of so many
tokens, in batches of a single one, as measured on the way.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from benchmarks.peer import ROOT
from demo.training.lessons.mixture import lesson
from demo.training.lessons.skills import drill
from llama4_edge import Model, Sampling
from llama4_edge.runtime.bindings.candidates import Floats
from llama4_edge.runtime.bindings.sampler import Sampler
from llama4_edge.runtime.scheduler import Request

_GREEDY = Sampling(temperature=0.0)


class Task(NamedTuple):
    """A prompt, and the text to be written after it; None where the model answers itself."""

    prompt: list[int]
    answer: list[int] | None


def main() -> None:
    """Measure each kind of text, and print a line for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=600, help="of a replayed text at most")
    parser.add_argument("--only", choices=("own", "replay"))
    arguments = parser.parse_args()
    with Model(arguments.model, n_ctx=arguments.context, n_threads=arguments.threads) as model:
        texts: dict[str, Callable[[], list[Task]]] = {
            "own: lists repeated": lambda: own_lists(model),
            "own: conversations": lambda: own_conversations(model),
            "replay: a page copied": lambda: replay(model, arguments.tokens, *copied()),
            "replay: a program changed": lambda: replay(model, arguments.tokens, *changed()),
            "replay: another page": lambda: replay(model, arguments.tokens, *another()),
        }
        for name, tasks in texts.items():
            if arguments.only in (None, name.split(":")[0]):
                measure(model, name, tasks(), arguments.rounds)
        costs = model.engine.scheduler._costs.offers()
        print("costs: " + ", ".join(f"{length} at {cost:.1f}" for length, cost in costs))


def measure(model: Model, name: str, tasks: Sequence[Task], rounds: int) -> None:
    """Do the tasks with and without drafts in turn, and print what came out."""
    plain, drafting = [], []
    for _ in range(rounds):
        without = [write(model, task, drafts=False) for task in tasks]
        requests = [write(model, task, drafts=True) for task in tasks]
        plain.append(rate(without))
        drafting.append(rate(requests))
    equal = sum(one.text == other.text for one, other in zip(without, requests, strict=True))
    is_own = name.startswith("own")
    same = f"; {equal} of {len(tasks)} texts the same" if is_own else ""
    drafted = sum(request.drafted_tokens for request in requests)
    accepted = sum(request.accepted_tokens for request in requests)
    tokens = sum(request.n_chosen for request in requests)
    print(
        f"{name:<26} {tokens:,} tokens, {drafted:,} drafted, {accepted:,} accepted: "
        f"{max(plain):,.1f} tokens/s without, {max(drafting):,.1f} with drafts, "
        f"{max(drafting) / max(plain):.2f} times as fast{same}",
        flush=True,
    )


def write(model: Model, task: Task, *, drafts: bool) -> Request:
    """A request that has ended."""
    engine, count = model.engine, len(task.answer) if task.answer else 400
    request = engine.request(
        task.prompt,
        _GREEDY,
        count,
        lambda _token, is_end: task.answer is not None or not is_end,
        paced=False,
        drafts=drafts,
    )
    with written(task.answer):
        engine.scheduler.submit(request)
        engine.scheduler.wait(request, lambda: request.ended)
    if request.error is not None:
        raise request.error
    return request


@contextmanager
def written(answer: Sequence[int] | None) -> Iterator[None]:
    """Samplers choose from the logits as they do, and then take the tokens of a text."""
    if answer is None:
        yield
        return
    following = iter(answer)
    choose = Sampler.choose

    def replayed(self: Sampler, logits: Floats) -> int | None:
        choose(self, logits)
        return next(following)

    with patch.object(Sampler, "choose", replayed):
        yield


def rate(requests: Sequence[Request]) -> float:
    """Tokens a second after the first one of each."""
    seconds = sum(request.decode_seconds for request in requests)
    return sum(request.n_chosen - 1 for request in requests) / seconds


def own_lists(model: Model) -> list[Task]:
    """Long lists to repeat, each asked for three times in a conversation."""
    rng = random.Random(1)
    lessons = [one for one in (drill(rng) for _ in range(100)) if len(one.turns[0].answer) > 100]
    return [conversation(model, [(t.question, t.answer) for t in one.turns]) for one in lessons[:8]]


def own_conversations(model: Model) -> list[Task]:
    """The last question of conversations of ten."""
    rng = random.Random(1)
    tasks = []
    for _ in range(12):
        turns = [turn for _ in range(10) for turn in lesson(rng).turns][:10]
        tasks.append(conversation(model, [(turn.question, turn.answer) for turn in turns]))
    return tasks


def conversation(model: Model, turns: Sequence[tuple[str, str]]) -> Task:
    """What was said, and the last question, which the model answers."""
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return Task(list(model.chat_prompt(messages[:-1]).positions), None)


def replay(model: Model, most: int, question: str, answer: str) -> list[Task]:
    """An answer to be written, as far as ``most`` tokens."""
    prompt = model.chat_prompt([{"role": "user", "content": question}]).positions
    return [Task(list(prompt), model.tokenize(answer)[:most])]


def copied() -> tuple[str, str]:
    """The beginning of the README, to be said again."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")[:4000]
    return f"Say this again:\n{page}", page


def changed() -> tuple[str, str]:
    """The beginning of a program, and the same with another name for its requests."""
    program = (ROOT / "runtime" / "scheduler.py").read_text(encoding="utf-8")[:6000]
    other = program.replace("request", "inquiry").replace("Request", "Inquiry")
    return f"Call each request an inquiry:\n{program}", other


def another() -> tuple[str, str]:
    """A page of the documentation, and what another one says about the same model."""
    guide, other = (
        (ROOT / "docs" / "guides" / name).read_text(encoding="utf-8")[:4000]
        for name in ("python.md", "first-run.md")
    )
    return f"How does it begin? The guide says:\n{guide}", other


if __name__ == "__main__":
    main()
