"""What drafts bring: acceptance, and tokens a second with and without them in turn.

    python -m benchmarks.drafts MODEL [--threads 1] [--rounds 5] [--only replay] [--tokens 600]
    python -m benchmarks.drafts MODEL --synthetic scout [--layers 4] [--rounds 1] [--tokens 200]

"own" answers are the model's, greedily, to what the demo model was trained on: lists to repeat, and
conversations. "replay" makes the model write given texts: each token is the next one of the text,
whatever the logits are, so that times are the model's and the text is what a better model would
say. There it copies a page, renames what a program calls its requests, or writes one page of the
documentation after another one was read. With --synthetic, replays alone are measured, on a slice
of that model, all widths and random weights, with the tokens of MODEL.

Rates are tokens a second of decoding, the best round of each, which is more reliable on a machine
with other work; drafts are counted in the last round. Costs are batches with a draft of so many
tokens, in batches of a single one, as measured on the way.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from benchmarks.peer import OUT, ROOT
from demo.training.lessons.mixture import lesson
from demo.training.lessons.skills import drill
from llama4_edge import EngineSettings, Model, Sampling
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.measure.synthetic import synthetic_file
from llama4_edge.runtime.bindings.candidates import Floats
from llama4_edge.runtime.bindings.sampler import Sampler
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.request import Request

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
    parser.add_argument("--synthetic", help="the model of which a slice is measured")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.synthetic is not None:
        arguments.only = "replay"
    with Model(arguments.model, n_ctx=arguments.context) as words, measured(arguments) as engine:
        texts: dict[str, Callable[[], list[Task]]] = {
            "own: lists repeated": lambda: own_lists(words),
            "own: conversations": lambda: own_conversations(words),
            "replay: a page copied": lambda: replay(words, arguments.tokens, *copied()),
            "replay: a program changed": lambda: replay(words, arguments.tokens, *changed()),
            "replay: another page": lambda: replay(words, arguments.tokens, *another()),
        }
        for name, tasks in texts.items():
            if arguments.only in (None, name.split(":")[0]):
                measure(engine, name, tasks(), arguments.rounds)
        costs = engine.scheduler._costs.offers()
        print("costs: " + ", ".join(f"{length} at {cost:.1f}" for length, cost in costs))


@contextmanager
def measured(arguments: argparse.Namespace) -> Iterator[Engine]:
    """The engine whose times are measured."""
    settings = EngineSettings(n_ctx=arguments.context, n_threads=arguments.threads)
    with ExitStack() as stack:
        path = arguments.model
        if (name := arguments.synthetic) is not None:
            slice_ = blueprint(
                name, recipe=arguments.recipe, layers=arguments.layers, synthetic=True
            )
            path = stack.enter_context(synthetic_file(slice_, arguments.directory, keep=True))
        yield stack.enter_context(Engine(path, settings))


def measure(engine: Engine, name: str, tasks: Sequence[Task], rounds: int) -> None:
    """Do the tasks with and without drafts in turn, and print what came out."""
    plain, drafting = [], []
    for _ in range(rounds):
        without = [write(engine, task, drafts=False) for task in tasks]
        requests = [write(engine, task, drafts=True) for task in tasks]
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


def write(engine: Engine, task: Task, *, drafts: bool) -> Request:
    """A request that has ended."""
    count = len(task.answer) if task.answer else 400
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

    # Without `choice`, each token is decoded in a call of its own, with drafts and without.
    with patch.object(Sampler, "choose", replayed), patch.object(Sampler, "choice", None):
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
