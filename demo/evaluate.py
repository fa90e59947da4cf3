"""Examines the small model of this folder on questions that it was never trained on.

    python demo/evaluate.py [--recipes bf16,int4] [--lengths 500,9000] [--card]

Promises: text goes through this project's own converter and engine, answered greedily and compared
word for word; pictures go through transformers, since the engine does not look at pictures yet, and
so does the count of what each expert is given. Does not know how the model was trained.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402 (found by the line above)
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from demo.encoding import encode, pixel_values  # noqa: E402
from demo.publish import write_scores  # noqa: E402
from demo.world.conversation import Conversation  # noqa: E402
from demo.world.haystack import needle  # noqa: E402
from demo.world.lessons import examination, picture_examination  # noqa: E402
from llama4_edge import Model, Sampling, convert  # noqa: E402

MODEL = ROOT / "demo" / "Llama-4-Tiny"
OUT = ROOT / "demo" / "out"
GREEDY = Sampling(temperature=0.0)
# Where the codes of a long conversation stand. In another chunk of attention (8192 tokens) than the
# question are all of them at 9,000 tokens, three at 16,000, and all but the last at 32,000.
DEPTHS = (0.0, 0.25, 0.5, 0.75, 0.85)


def main() -> None:
    """Convert, ask, and show the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--recipes", default="bf16,int4")
    parser.add_argument("--lengths", default="500,2000,9000,16000,32000")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--card", action="store_true", help="write the scores into the card")
    parser.add_argument("--failures", action="store_true", help="show what was answered wrongly")
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",") if length]
    columns: dict[str, dict[str, float]] = {}
    OUT.mkdir(exist_ok=True)
    for recipe in arguments.recipes.split(","):
        file = OUT / f"llama-4-tiny-{recipe}.gguf"
        convert(arguments.model, file, recipe=recipe, force=True)
        failures: list[str] = []
        columns[recipe] = text_scores(file, examination(), failures)
        columns[recipe] |= needle_scores(file, lengths, failures)
        if arguments.failures:
            print("\n".join(f"{recipe}: {one}" for one in failures))
    columns["transformers"] = picture_scores(arguments.model, arguments.pictures)
    least, most = expert_shares(arguments.model, examination())
    experts = (
        f"Each expert is given between {least:.2f} and {most:.2f} times its even share of tokens."
    )
    Console().print(table_of(columns), experts)
    if arguments.card:
        write_scores(arguments.model, f"{markdown(columns)}\n{experts}\n")


def text_scores(
    file: Path, questions: Sequence[Conversation], failures: list[str]
) -> dict[str, float]:
    """The share of right answers by kind of question, and of all of them under "text"."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    with Model(file, n_ctx=2048, n_threads=1) as model:
        for question in track(questions, description=file.name, transient=True):
            answer = last_answer(model, question)
            correct = answer == question.turns[-1].answer
            for kind in ("text", question.kind):
                asked[kind] += 1
                right[kind] += correct
            if not correct:
                failures.append(failure(question, answer))
    return {kind: right[kind] / asked[kind] for kind in sorted(asked)}


def failure(question: Conversation, answer: str) -> str:
    """What was asked, what was to be answered, and what was answered."""
    wanted = question.turns[-1]
    return f"{wanted.said[-200:]!r}: {answer!r} instead of {wanted.answer!r}"


def last_answer(model: Model, question: Conversation) -> str:
    """What the model answers to the last turn, when the answers before it were the right ones."""
    messages = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn.said})
        messages.append({"role": "assistant", "content": turn.answer})
    return model.chat(messages[:-1], max_tokens=64, sampling=GREEDY).text


def needle_scores(file: Path, lengths: Iterable[int], failures: list[str]) -> dict[str, float]:
    """The share of codes that are found again in conversations of some lengths, in tokens."""
    scores = {}
    for length in lengths:
        chance = random.Random(f"needle {length}")
        right = asked = 0
        with Model(file, n_ctx=length + 512, n_threads=1) as model:
            conversation = needle(
                chance,
                True,
                length,
                lambda text: len(model.tokenize(text)),
                codes=len(DEPTHS),
                questions=len(DEPTHS),
                depths=DEPTHS,
            )
            for number in range(1, len(conversation.turns) + 1):
                upto = Conversation("needle", conversation.turns[:number])
                answer = last_answer(model, upto)
                asked += 1
                right += answer == upto.turns[-1].answer
                if answer != upto.turns[-1].answer:
                    failures.append(f"{length} tokens: {failure(upto, answer)}")
        scores[f"codes across {length} tokens"] = right / asked
    return scores


def picture_scores(directory: Path, count: int) -> dict[str, float]:
    """The share of right answers about pictures, by transformers."""
    import torch

    tokenizer, network = by_transformers(directory)
    right = 0
    for question in track(picture_examination(count), description="pictures", transient=True):
        assert question.picture is not None
        encoded = encode(tokenizer, question)
        prompt = len(encoded.ids) - sum(encoded.answers)
        with torch.inference_mode():
            made = network(
                input_ids=torch.tensor([encoded.ids]),
                pixel_values=torch.from_numpy(pixel_values(question.picture))[None],
                use_cache=False,
            ).logits[0]
        # Where each token of the right answer is the likeliest, the greedy answer is right.
        right += made[prompt - 1 : -1].argmax(-1).tolist() == encoded.ids[prompt:]
    return {"pictures": right / count}


def expert_shares(directory: Path, questions: Sequence[Conversation]) -> tuple[float, float]:
    """The least and the most that an expert of any layer is given, in even shares of the tokens."""
    import torch
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    tokenizer, network = by_transformers(directory)
    given: dict[int, Any] = {}

    def count(router: Llama4Router, _inputs: object, made: tuple[Any, Any]) -> None:
        chosen = torch.bincount(made[1].argmax(-1), minlength=router.num_experts)
        given[id(router)] = given.get(id(router), 0) + chosen

    for module in network.modules():
        if isinstance(module, Llama4Router):
            module.register_forward_hook(count)
    for question in questions:
        with torch.inference_mode():
            network(input_ids=torch.tensor([encode(tokenizer, question).ids]), use_cache=False)
    shares = torch.stack([counts / counts.float().mean() for counts in given.values()])
    return shares.min().item(), shares.max().item()


def by_transformers(directory: Path) -> tuple[Tokenizer, Any]:
    """The checkpoint's tokenizer, and its model in float32."""
    import torch
    from transformers import Llama4ForConditionalGeneration

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    network = Llama4ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    return tokenizer, network


def rows_of(columns: dict[str, dict[str, float]]) -> Iterator[tuple[str, ...]]:
    """A row for each kind of question, with the score in each column that has one."""
    for kind in dict.fromkeys(kind for scores in columns.values() for kind in scores):
        yield kind, *(f"{one[kind]:.1%}" if kind in one else "" for one in columns.values())


def table_of(columns: dict[str, dict[str, float]]) -> Table:
    """The scores for a terminal."""
    table = Table("questions", *columns)
    for row in rows_of(columns):
        table.add_row(*row)
    return table


def markdown(columns: dict[str, dict[str, float]]) -> str:
    """The scores for the card."""
    lines = [("questions", *columns), ("---",) * (len(columns) + 1), *rows_of(columns)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
