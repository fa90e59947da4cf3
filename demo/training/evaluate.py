"""Examines demo/Llama-4-Tiny on held-out questions.

    python -m demo.training.evaluate [--recipes bf16,int4] [--lengths 500,9000] [--card]

Promises: questions and pictures go through this project's converter and engine, with greedy
decoding, and an answer counts if it matches word for word; pictures go through with their features
in mtmd's order too, and pictures and the experts' shares of tokens through transformers. Does not
know how the model was trained.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer

from demo.training import MODEL, OUT
from demo.training.encoding import encode, pixel_values
from demo.training.lessons.conversation import Conversation
from demo.training.lessons.haystack import needle
from demo.training.lessons.mixture import examination, picture_examination
from demo.training.lessons.several_pictures import several_pictures_examination
from demo.training.publish import write_scores
from llama4_edge import Model, Sampling, convert, with_images
from llama4_edge.vision import projector

GREEDY = Sampling(temperature=0.0)
# Positions of the codes in a long conversation, from 0 to 1. Outside the attention chunk (8192
# tokens) of the question are all of them at 9,000 tokens, three at 16,000, four at 32,000.
DEPTHS = (0.0, 0.25, 0.5, 0.75, 0.85)
# Of the questions about pictures, the share in conversations with two or three pictures.
SEVERAL = 0.35


def main() -> None:
    """Convert, ask, and print the scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--recipes", default="bf16,int4")
    parser.add_argument("--lengths", default="500,2000,9000,16000,32000")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--card", action="store_true", help="write the scores into the model card")
    parser.add_argument("--failures", action="store_true", help="print the wrong answers")
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",") if length]
    columns: dict[str, dict[str, float]] = {}
    others: dict[str, dict[str, float]] = {}
    OUT.mkdir(exist_ok=True)
    for recipe in arguments.recipes.split(","):
        file = OUT / f"llama-4-tiny-{recipe}.gguf"
        convert(arguments.model, file, recipe=recipe, force=True)
        failures: list[str] = []
        columns[recipe] = text_scores(file, examination(), failures)
        columns[recipe] |= needle_scores(file, lengths, failures)
        columns[recipe] |= picture_answers(file, arguments.pictures, failures)
        others[f"{recipe}, mtmd's order"] = in_order_of_mtmd(file, arguments.pictures)
        if arguments.failures:
            print("\n".join(f"{recipe}: {failure}" for failure in failures))
    columns |= others
    columns["transformers"] = picture_scores(arguments.model, arguments.pictures)
    least, most = expert_shares(arguments.model, examination())
    experts = (
        f"Each expert gets between {least:.2f} and {most:.2f} times an even share of the tokens."
    )
    Console().print(table_of(columns), experts)
    if arguments.card:
        write_scores(arguments.model, f"{markdown(columns)}\n{experts}\n")


def text_scores(
    file: Path, questions: Sequence[Conversation], failures: list[str]
) -> dict[str, float]:
    """The share of correct answers by kind of question, and of all questions under "text"."""
    total: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    with Model(file, n_ctx=2048, n_threads=1) as model:
        for question in track(questions, description=file.name, transient=True):
            answer = last_answer(model, question)
            is_correct = answer == question.turns[-1].answer
            for kind in ("text", question.kind):
                total[kind] += 1
                correct[kind] += is_correct
            if not is_correct:
                failures.append(failure_line(question, answer))
    return {kind: correct[kind] / total[kind] for kind in sorted(total)}


def failure_line(question: Conversation, answer: str) -> str:
    """The question, the model's answer and the correct one."""
    turn = question.turns[-1]
    return f"{turn.question[-200:]!r}: {answer!r} instead of {turn.answer!r}"


def last_answer(model: Model, question: Conversation) -> str:
    """The model's answer to the last turn, after the correct answers to the turns before it."""
    messages: list[dict[str, Any]] = []
    for turn in question.turns:
        pixels = [picture.pixels() for picture in turn.pictures]
        content = with_images(turn.question, pixels) if pixels else turn.question
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": turn.answer})
    return model.chat(messages[:-1], max_tokens=64, sampling=GREEDY).text


def needle_scores(file: Path, lengths: Iterable[int], failures: list[str]) -> dict[str, float]:
    """The share of codes recalled in long conversations; ``lengths`` are in tokens."""
    scores = {}
    for length in lengths:
        rng = random.Random(f"needle {length}")
        correct = total = 0
        with Model(file, n_ctx=length + 512, n_threads=1) as model:
            conversation = needle(
                rng,
                True,
                length,
                lambda text: len(model.tokenize(text)),
                codes=len(DEPTHS),
                questions=len(DEPTHS),
                depths=DEPTHS,
            )
            for number in range(1, len(conversation.turns) + 1):
                question = Conversation("needle", conversation.turns[:number])
                answer = last_answer(model, question)
                total += 1
                correct += answer == question.turns[-1].answer
                if answer != question.turns[-1].answer:
                    failures.append(f"{length} tokens: {failure_line(question, answer)}")
        scores[f"codes across {length} tokens"] = correct / total
    return scores


def picture_questions(count: int) -> list[Conversation]:
    """``count`` questions about held-out pictures, of which ``SEVERAL`` are not alone."""
    several = round(count * SEVERAL)
    return picture_examination(count - several) + several_pictures_examination(several)


def picture_answers(file: Path, count: int, failures: list[str]) -> dict[str, float]:
    """The share of correct answers about pictures, of the model with the projector beside it.

    By the number of pictures that the conversation has had, and of all under "pictures".
    """
    questions = picture_questions(count)
    is_correct = []
    with Model(file, n_ctx=1024, n_threads=1) as model:
        for question in track(questions, description="pictures", transient=True):
            answer = last_answer(model, question)
            is_correct.append(answer == question.turns[-1].answer)
            if not is_correct[-1]:
                failures.append(failure_line(question, answer))
    return picture_shares(questions, is_correct)


def picture_shares(
    questions: Sequence[Conversation], is_correct: Sequence[bool]
) -> dict[str, float]:
    """The share of correct answers by the number of pictures, and of all under "pictures"."""
    total: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for question, right in zip(questions, is_correct, strict=True):
        number = len(question.pictures)
        for kind in ("pictures", f"pictures: {number} in the conversation"):
            total[kind] += 1
            correct[kind] += right
    return {kind: correct[kind] / total[kind] for kind in sorted(total)}


def in_order_of_mtmd(file: Path, count: int) -> dict[str, float]:
    """``picture_answers`` with the features of a tile in the order of llama.cpp's mtmd."""
    in_reading_order = projector.in_reading_order
    projector.in_reading_order = lambda features: features
    try:
        return picture_answers(file, count, [])
    finally:
        projector.in_reading_order = in_reading_order


def picture_scores(directory: Path, count: int) -> dict[str, float]:
    """The share of correct answers about pictures, computed by transformers."""
    import torch

    tokenizer, network = load_in_transformers(directory)
    questions = picture_questions(count)
    is_correct = []
    for question in track(questions, description="pictures", transient=True):
        encoded = encode(tokenizer, question)
        prompt = len(encoded.answers) - encoded.answers[::-1].index(0)
        pixels = np.stack([pixel_values(picture) for picture in question.pictures])
        with torch.inference_mode():
            logits = network(
                input_ids=torch.tensor([encoded.ids]),
                pixel_values=torch.from_numpy(pixels),
                use_cache=False,
            ).logits[0]
        # The greedy answer is correct if each token of the correct answer is the likeliest one.
        is_correct.append(logits[prompt - 1 : -1].argmax(-1).tolist() == encoded.ids[prompt:])
    return picture_shares(questions, is_correct)


def expert_shares(directory: Path, questions: Sequence[Conversation]) -> tuple[float, float]:
    """The least and the most tokens of an expert of any layer, in multiples of an even share."""
    import torch
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    tokenizer, network = load_in_transformers(directory)
    counts: dict[int, torch.Tensor] = {}

    def count(
        router: Llama4Router, _inputs: object, outputs: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        choices = torch.bincount(outputs[1].argmax(-1), minlength=router.num_experts)
        counts[id(router)] = counts.get(id(router), torch.zeros_like(choices)) + choices

    for module in network.modules():
        if isinstance(module, Llama4Router):
            module.register_forward_hook(count)
    for question in questions:
        with torch.inference_mode():
            network(input_ids=torch.tensor([encode(tokenizer, question).ids]), use_cache=False)
    shares = torch.stack([tokens / tokens.float().mean() for tokens in counts.values()])
    return shares.min().item(), shares.max().item()


def load_in_transformers(directory: Path) -> tuple[Tokenizer, Any]:
    """The checkpoint's tokenizer, and its model in float32."""
    import torch
    from transformers import Llama4ForConditionalGeneration

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    network = Llama4ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    return tokenizer, network


def rows_of(columns: dict[str, dict[str, float]]) -> Iterator[tuple[str, ...]]:
    """A row for each kind of question, with empty cells where a column has no score."""
    for kind in dict.fromkeys(kind for scores in columns.values() for kind in scores):
        yield (
            kind,
            *(f"{scores[kind]:.1%}" if kind in scores else "" for scores in columns.values()),
        )


def table_of(columns: dict[str, dict[str, float]]) -> Table:
    """The scores as a table for the terminal."""
    table = Table("questions", *columns)
    for row in rows_of(columns):
        table.add_row(*row)
    return table


def markdown(columns: dict[str, dict[str, float]]) -> str:
    """The scores as a table in Markdown."""
    lines = [("questions", *columns), ("---",) * (len(columns) + 1), *rows_of(columns)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
