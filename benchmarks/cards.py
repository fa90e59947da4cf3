"""The scores of Llama 4's cards, for several files of a model beside what Meta published.

    python -m benchmarks.cards bf16.gguf int4.gguf --data DIR [--mmproj FILE]
        [--tasks mmlu-pro,gpqa,mmmu,mmmu-pro,mathvista] [--limit N] [--json FILE]

DIR has a folder a task, as `benchmarks.card_sets` says, which downloads each; without --tasks those
that are there are asked. Every model answers every question through the API, greedily, many at a
time. What it answered is kept, a line an answer, beside --json's file: after Ctrl-C the same
command goes on, and asks nothing twice. Prints a table in Markdown: the share that is right with
its 95% interval (Wilson's; of MMLU-Pro the mean over its categories, of MMMU-Pro that of standard
and vision questions), and how far each file is from the first, question by question. Exits with 0
when all is asked, 1 for an error, 2 for a mistake in the command, 130 after Ctrl-C.

`benchmarks.card_demo DIR` writes small sets for the model in the box, which wants --plain.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.card_sets import TASKS, Item, Task
from llama4_edge import AsyncModel, Model
from llama4_edge.errors import ContextFullError, ImageError, Llama4EdgeError, SettingError
from llama4_edge.measure.divergence import wilson
from llama4_edge.runtime.files.model_file import ModelInfo, check_model_file
from llama4_edge.system.files import sync, write_atomically
from llama4_edge.units import seconds_text
from llama4_edge.vision.projector import Pictures

# Instruction-tuned models in bf16, without examples: models/llama4/MODEL_CARD.md of
# github.com/meta-llama/llama-models.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "scout": {
        "mmlu-pro": 0.743, "gpqa": 0.572, "mmmu": 0.694, "mmmu-pro": 0.522, "mathvista": 0.707,
    },
    "maverick": {
        "mmlu-pro": 0.805, "gpqa": 0.698, "mmmu": 0.734, "mmmu-pro": 0.596, "mathvista": 0.737,
    },
}  # fmt: skip
_MODELS = {(48, 16): "scout", (48, 128): "maverick"}  # by layers and experts

_CONTEXT, _CONTEXT_OF_PICTURES = 8192, 20_480
_BETWEEN_LINES = 30.0  # seconds, where there is no terminal


def main(words: Sequence[str] | None = None) -> int:
    """Ask, and print the table; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--mmproj", type=Path, help="the vision tower; else that beside the model")
    parser.add_argument("--tasks", help=f"of {','.join(TASKS)}")
    parser.add_argument("--limit", type=_count, metavar="N", help="questions a task, evenly chosen")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the table, for programs")
    parser.add_argument("--answers", type=Path, metavar="FILE.jsonl", help="where they are kept")
    parser.add_argument("--parallel", type=_count, default=8, help="questions at a time")
    parser.add_argument("--max-tokens", type=_count, default=2048, help="of an answer")
    parser.add_argument("-c", "--ctx-size", type=_count, help="tokens of a question and its answer")
    parser.add_argument("-t", "--threads", type=_count)
    parser.add_argument("--plain", action="store_true", help="ask the questions and no more")
    arguments = parser.parse_args(words)
    kept = arguments.answers or (arguments.json or Path("cards.json")).with_suffix(".answers.jsonl")
    try:
        run(arguments, kept)
    except Llama4EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        hint = f"\ninterrupted; answers are kept in {kept}, and the same command goes on"
        print(hint, file=sys.stderr)
        return 130
    return 0


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 up")
    return int(word)


def run(arguments: argparse.Namespace, kept: Path) -> None:
    """Everything that is checked, asked and written.

    Raises:
        Llama4EdgeError: a file or a setting is at fault.
    """
    tasks = chosen_tasks(arguments.data, arguments.tasks)
    infos = [check_model_file(path) for path in arguments.models]
    counts = {task.name: task.count(arguments.data, arguments.limit) for task in tasks}
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise SettingError(f"{arguments.json.parent} is not a directory", hint="Make it first.")
    towers = [tower_of(info, arguments.mmproj, tasks) for info in infos]
    with Answers.opened(kept) as answers:
        scores = [
            Asking(arguments, info, tower, answers).scores(tasks, counts)
            for info, tower in zip(infos, towers, strict=True)
        ]
    published = card_of(infos[0])
    names = [path.name for path in arguments.models]
    print(table(names, tasks, scores, published))
    print(
        f"\nAsked without examples, greedily, for at most {arguments.max_tokens:,} tokens an "
        "answer; intervals and ± are of 95%. The card's scores are Meta's, of bf16."
    )
    if arguments.json is not None:
        record = as_dict(arguments.models, tasks, scores, published)
        write_atomically(arguments.json, json.dumps(record, indent=1) + "\n")


def card_of(info: ModelInfo) -> Mapping[str, float]:
    """What Meta published of the model; nothing of another."""
    hparams = info.hparams
    return PUBLISHED.get(_MODELS.get((hparams.n_layer, hparams.n_expert), ""), {})


def tower_of(info: ModelInfo, named: Path | None, tasks: Sequence[Task]) -> Path | None:
    """The file of the model's vision tower, if a task has pictures.

    Raises:
        SettingError: there is none.
        ModelFileError: it is not one for this model, or there are several.
    """
    shown = [task.name for task in tasks if task.shows_pictures]
    if not shown:
        return None
    tower = Pictures(info, named).path()
    if tower is None:
        raise SettingError(
            f"{info.path} has no vision tower",
            found=f"the task {shown[0]}",
            hint="Give --mmproj, or --tasks mmlu-pro,gpqa.",
        )
    return tower


def chosen_tasks(directory: Path, names: str | None) -> list[Task]:
    """Those that were named, or whose folders are there.

    Raises:
        SettingError: there is none of that name, or no folder.
    """
    if names is None:
        found = [task for task in TASKS.values() if task.place(directory) is not None]
        if not found:
            raise SettingError(
                f"{directory} has no folder of a task", expected=f"one of {', '.join(TASKS)}"
            )
        return found
    unknown = [name for name in names.split(",") if name not in TASKS]
    if unknown:
        raise SettingError(
            "tasks has an unknown one", found=unknown[0], expected=f"some of {', '.join(TASKS)}"
        )
    return [TASKS[name] for name in dict.fromkeys(names.split(","))]


@dataclass
class Score:
    """What became of a task's questions: by group, whether each answer is right.

    Args:
        unanswered: how many could not be asked.
        cut: how many answers were not at their end when they had all the tokens they may have.
    """

    groups: dict[str, list[bool]] = field(default_factory=dict)
    unanswered: int = 0
    cut: int = 0

    def add(self, item: Item, right: bool) -> None:
        """Count a question."""
        self.groups.setdefault(item.group, []).append(right)

    @property
    def count(self) -> int:
        """How many questions there were."""
        return sum(map(len, self.groups.values()))

    @property
    def right(self) -> int:
        """How many were answered right."""
        return sum(map(sum, self.groups.values()))

    @property
    def value(self) -> float:
        """The share that is right, the mean over the groups."""
        shares = [sum(group) / len(group) for group in self.groups.values()]
        return sum(shares) / len(shares)

    @property
    def interval(self) -> tuple[float, float]:
        """In which the true share lies with 95% confidence.

        Wilson's for each group; for the mean of several, their distances from the shares are added
        as variances are (MOVER; G. Y. Zou and A. Donner, 2008).
        """
        below = above = 0.0
        for group in self.groups.values():
            share = sum(group) / len(group)
            low, high = wilson(sum(group), len(group))
            below += (share - low) ** 2
            above += (high - share) ** 2
        count = len(self.groups)
        return self.value - math.sqrt(below) / count, self.value + math.sqrt(above) / count

    def difference(self, first: Score) -> tuple[float, float]:
        """How much better this one is, and the half of the 95% interval, question by question.

        The variance is that of A. Agresti and Y. Min (2005), which is not 0 where both agree on
        every question.
        """
        total = variance = 0.0
        for name, group in self.groups.items():
            steps = [one - other for one, other in zip(group, first.groups[name], strict=True)]
            gained, differing = sum(steps), sum(map(abs, steps))
            total += gained / len(steps)
            more = len(steps) + 2
            variance += (differing + 1 - gained**2 / more) / more**2
        count = len(self.groups)
        return total / count, 1.96 * math.sqrt(variance) / count


class Answers:
    """A file of answers, a JSON object a line, that is read and then added to."""

    def __init__(self, file: IO[str], known: dict[str, dict[str, Any]]) -> None:
        self._file, self._known = file, known

    @classmethod
    def opened(cls, path: Path) -> Answers:
        """What is there is known, but for what could not be asked; half a line is cut off.

        Raises:
            SettingError: it cannot be read or written, or holds something else.
        """
        try:
            path.touch()
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines()]
            known = {line["key"]: line for line in lines if "error" not in line}
            file = path.open("r+", encoding="utf-8")
            file.truncate(len(whole))
            file.seek(len(whole))
        except OSError as error:
            raise SettingError(f"{path} cannot be written", found=error.strerror) from error
        except (ValueError, KeyError, TypeError) as error:
            raise SettingError(
                f"{path} is not a file of answers", found=str(error), hint="Give another name."
            ) from error
        return cls(file, known)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        sync(self._file.fileno())
        self._file.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to a question, if it is there."""
        return self._known.get(key)

    def add(self, record: dict[str, Any]) -> None:
        """Keep an answer."""
        self._known[record["key"]] = record
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


class Asking:
    """One model, and what it is asked."""

    def __init__(
        self, arguments: argparse.Namespace, info: ModelInfo, tower: Path | None, answers: Answers
    ) -> None:
        self._arguments, self._info, self._tower, self._answers = arguments, info, tower, answers
        self._path = info.path
        self._digest = f"{info.bytes} {_digest(info.path)}"
        self._tower_digest = None if tower is None else _digest(tower)

    def scores(self, tasks: Sequence[Task], counts: Mapping[str, int]) -> dict[str, Score]:
        """What the model scores in each task; it is only opened for what is not known."""
        missing = {task.name: sum(1 for _ in self._unknown(task)) for task in tasks}
        wanted = [task for task in tasks if missing[task.name]]
        if wanted:
            with self._opened(any(task.shows_pictures for task in wanted)) as model:
                for task in wanted:
                    report = _Report(
                        f"{self._path.name}: {task.title}", counts[task.name], missing[task.name]
                    )
                    asyncio.run(self._ask(AsyncModel(model), task, report))
        return {task.name: self._score(task) for task in tasks}

    def _opened(self, pictures: bool) -> Model:
        arguments = self._arguments
        n_ctx = arguments.ctx_size or (_CONTEXT_OF_PICTURES if pictures else _CONTEXT)
        return Model(
            self._path,
            n_ctx=min(n_ctx, self._info.hparams.n_ctx_train),
            n_parallel=arguments.parallel,
            n_threads=arguments.threads,
            projector=self._tower if pictures else None,
            cache_ram=0,
        )

    def _items(self, task: Task) -> Iterator[Item]:
        return task.items(self._arguments.data, self._arguments.limit)

    def _unknown(self, task: Task) -> Iterator[Item]:
        return (one for one in self._items(task) if self._answers.get(self._key(task, one)) is None)

    def _key(self, task: Task, item: Item) -> str:
        """Of what an answer depends on."""
        arguments = self._arguments
        asked = (item.prompt(plain=arguments.plain), item.id, arguments.max_tokens)
        tower = self._tower_digest if item.pictures else None
        digest = hashlib.sha256(repr((self._digest, tower, *asked)).encode())
        for number, picture in sorted(item.pictures.items()):
            digest.update(b"%d" % number + picture)
        return f"{task.name} {digest.hexdigest()[:32]}"

    async def _ask(self, model: AsyncModel, task: Task, report: _Report) -> None:
        """Ask what is not known, some at a time."""
        items = self._unknown(task)

        async def one_after_the_other() -> None:
            for item in items:  # each takes the next that nobody has taken
                record = await self._answer(model, task, item)
                self._answers.add(record)
                report.add(item.judged(record["answer"]).right)

        await asyncio.gather(*(one_after_the_other() for _ in range(self._arguments.parallel)))
        report.end()

    async def _answer(self, model: AsyncModel, task: Task, item: Item) -> dict[str, Any]:
        """An answer as it is kept; empty where the question cannot be asked."""
        arguments = self._arguments
        record: dict[str, Any] = {
            "key": self._key(task, item),
            "model": self._path.name,
            "task": task.name,
            "id": item.id,
        }
        try:
            done = await model.chat(
                [{"role": "user", "content": item.content(plain=arguments.plain)}],
                temperature=0.0,
                max_tokens=arguments.max_tokens,
            )
        except (ContextFullError, ImageError) as error:
            return {**record, "answer": "", "error": str(error)}
        return {
            **record,
            "answer": done.text,
            "tokens": len(done.tokens),
            "end": done.finish_reason,
        }

    def _score(self, task: Task) -> Score:
        """What is known of a task; answers are judged anew."""
        score = Score()
        for item in self._items(task):
            record = self._answers.get(self._key(task, item))
            assert record is not None
            score.add(item, item.judged(record["answer"]).right)
            score.unanswered += "error" in record
            score.cut += record.get("end") == "length"
        return score


def _digest(path: Path) -> str:
    """Tells a file from others, without reading all of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(b"%d" % size)
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        file.seek(max(size - (1 << 20), 0))
        digest.update(file.read())
    return digest.hexdigest()


class _Report:
    """How far a task is, on stderr."""

    def __init__(self, name: str, total: int, missing: int) -> None:
        self._name, self._total = name, total
        self._done = self._known = total - missing
        self._right = 0
        self._began = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def add(self, right: bool) -> None:
        """A question is answered."""
        self._done += 1
        self._right += right
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._terminal else _BETWEEN_LINES):
            self._shown = now
            self._show(now)

    def end(self) -> None:
        """All are."""
        self._show(time.monotonic())
        if self._terminal:
            print(file=sys.stderr)

    def _show(self, now: float) -> None:
        asked = self._done - self._known
        rate = asked / max(now - self._began, 1e-9)
        left = seconds_text((self._total - self._done) / rate) if rate else "?"
        share = f"{self._right / asked:.1%}" if asked else "none"
        line = (
            f"{self._name}: {self._done:,} of {self._total:,}, {share} right, "
            f"{rate:.2g} questions/s, {left} left"
        )
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def table(
    names: Sequence[str],
    tasks: Sequence[Task],
    scores: Sequence[Mapping[str, Score]],
    published: Mapping[str, float],
) -> str:
    """The scores in Markdown; intervals are those of 95%."""
    headings = ["questions", "card", *names, *(f"{name}, difference" for name in names[1:])]
    lines = ["| | " + " | ".join(headings) + " |", "|---|" + "---|" * len(headings)]
    for task in tasks:
        first = scores[0][task.name]
        card = published.get(task.name)
        cells = [f"{first.count:,}", "—" if card is None else f"{card:.1%}"]
        for score in (one[task.name] for one in scores):
            low, high = score.interval
            cell = f"{score.value:.1%} ({low:.1%} to {high:.1%})"
            for count, reason in ((score.unanswered, "not asked"), (score.cut, "cut off")):
                cell += f", {count} {reason}" if count else ""
            cells.append(cell)
        for score in (one[task.name] for one in scores[1:]):
            mean, half = score.difference(first)
            cells.append(f"{mean:+.1%} ± {half:.1%}")
        lines.append(f"| {task.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_dict(
    models: Sequence[Path],
    tasks: Sequence[Task],
    scores: Sequence[Mapping[str, Score]],
    published: Mapping[str, float],
) -> dict[str, Any]:
    """The same for JSON."""
    return {
        task.name: {
            "published": published.get(task.name),
            "models": [
                {
                    "model": str(path),
                    "score": score.value,
                    "interval": list(score.interval),
                    "right": score.right,
                    "questions": score.count,
                    "not_asked": score.unanswered,
                    "cut_off": score.cut,
                    "groups": {
                        name: {"right": sum(group), "questions": len(group)}
                        for name, group in score.groups.items()
                    },
                    "difference": dict(
                        zip(("mean", "half"), score.difference(scores[0][task.name]), strict=True)
                    ),
                }
                for path, score in zip(models, (one[task.name] for one in scores), strict=True)
            ],
        }
        for task in tasks
    }


if __name__ == "__main__":
    sys.exit(main())
