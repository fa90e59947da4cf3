"""lm-eval over HTTP, with tasks from local files, beside the same computed through `Model`."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.training.lessons.haystack import hay
from demo.training.lessons.skills import copying
from llama4_edge import Model
from tests.server.clients.others import needs_others, run_other
from tests.server.running import RunningServer, running_server

pytestmark = [pytest.mark.heavy, needs_others]

_CHOICES = 16
_LENGTHS = (1, 3, 8, 15)  # sentences before a question


@pytest.fixture(scope="module")
def exact_model(demo_path: Path) -> Iterator[Model]:
    """The demo model, whose logits do not depend on what else is in a batch.

    On the CPU ggml's flash attention sums in f16 where fewer than 64 tokens are decoded.
    """
    with Model(demo_path, n_ctx=2048, n_threads=1, n_parallel=4, flash_attention="off") as model:
        yield model


@pytest.fixture(scope="module")
def exact_server(exact_model: Model) -> Iterator[RunningServer]:
    with running_server(exact_model) as server:
        yield server


def write_task(directory: Path, name: str, documents: list[dict[str, Any]], **task: Any) -> None:
    """A task of lm-eval's and its documents."""
    data = directory / f"{name}.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in documents), encoding="utf-8")
    fields = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "doc_to_text": "{{question}}", **task,
    }  # fmt: skip
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")


def evaluated(
    directory: Path, name: str, kind: str, *options: str, **settings: object
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores of a task and its samples, in the order of its documents."""
    arguments = ",".join(f"{key}={value}" for key, value in settings.items())
    run_other(
        "-m", "lm_eval", "--model", kind, "--model_args", arguments, "--tasks", name,
        "--include_path", str(directory), "--output_path", str(directory / "out"),
        "--log_samples", *options, directory=directory,
    )  # fmt: skip
    (results,) = (directory / "out").rglob("results_*.json")
    (samples,) = (directory / "out").rglob(f"samples_{name}_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    scores: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))["results"][name]
    return scores, sorted(lines, key=lambda line: line["doc_id"])


def loglikelihood(model: Model, context: str, continuation: str) -> tuple[float, bool]:
    """The logarithm of a continuation's probability, and whether it is the likeliest."""
    tokens = model.tokenize(context + continuation)
    scores = model.engine.score(tokens, 1)[len(model.tokenize(context)) - 1 :]
    is_greedy = all(one.logprob >= one.top[0][1] for one in scores)
    return math.fsum(one.logprob for one in scores), is_greedy


@pytest.mark.parametrize("batch_size", [1, 4])
def test_multiple_choice_gives_the_likelihoods_and_the_accuracy_of_the_model(
    exact_server: RunningServer, exact_model: Model, tmp_path: Path, batch_size: int
) -> None:
    rng = random.Random(3)
    documents: list[dict[str, Any]] = []
    for number in range(_CHOICES):
        sentences = [hay(rng) for _ in range(_LENGTHS[number % len(_LENGTHS)])]
        last = sentences[-1].rsplit(" ", 1)
        wrong = [hay(rng).rsplit(" ", 1)[1] for _ in range(3)]
        documents.append(
            {
                "question": " ".join([*sentences, *sentences[:-1], last[0]]),
                "choices": [*wrong[:2], last[1], *wrong[2:]],
                "answer": 2,
            }
        )
    write_task(
        tmp_path, "endings", documents, output_type="multiple_choice",
        doc_to_choice="{{choices}}", doc_to_target="{{answer}}", metric_list=[{"metric": "acc"}],
    )  # fmt: skip
    scores, samples = evaluated(
        tmp_path, "endings", "local-completions", "--batch_size", str(batch_size), model="any",
        num_concurrent=4,         base_url=f"{exact_server.url}/v1/completions", max_retries=1,
    )  # fmt: skip
    right = 0
    for document, sample in zip(documents, samples, strict=True):
        expected = [
            loglikelihood(exact_model, document["question"], f" {choice}")
            for choice in document["choices"]
        ]
        found = [(float(value), is_greedy == "True") for ((value, is_greedy),) in sample["resps"]]
        assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
        assert [one[1] for one in found] == [one[1] for one in expected]
        values = [value for value, _ in expected]
        right += values.index(max(values)) == 2
    assert scores["acc,none"] == pytest.approx(right / _CHOICES)


def test_answers_in_a_conversation_are_the_models(
    demo_server: RunningServer, demo_model: Model, tmp_path: Path
) -> None:
    rng = random.Random(5)
    turns = [copying(rng, True).turns[0] for _ in range(12)]
    documents = [{"question": turn.question, "answer": turn.answer} for turn in turns]
    write_task(
        tmp_path, "repeating", documents, output_type="generate_until",
        doc_to_target="{{answer}}", metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 32, "temperature": 0.0},
    )  # fmt: skip
    scores, samples = evaluated(
        tmp_path, "repeating", "local-chat-completions", "--apply_chat_template", model="any",
        num_concurrent=4, base_url=f"{demo_server.url}/v1/chat/completions", max_retries=1,
    )  # fmt: skip
    said = [sample["filtered_resps"][0] for sample in samples]
    assert said == [
        demo_model.chat(turn.question, temperature=0.0, max_tokens=32, stop="\n").text
        for turn in turns
    ]
    right = sum(text == turn.answer for text, turn in zip(said, turns, strict=True))
    assert scores["exact_match,none"] == pytest.approx(right / len(turns))
    assert right >= 10
