"""The model in the box is a whole Llama 4 checkpoint, and knows what it was taught.

Scores are of questions it was never trained on, asked through our converter and engine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Llama4ForConditionalGeneration

from demo.training.encoding import encode
from demo.training.evaluate import (
    GREEDY,
    expert_shares,
    load_in_transformers,
    needle_scores,
    picture_scores,
    text_scores,
)
from demo.training.lessons.mixture import examination
from llama4_edge import Message, Model, convert
from llama4_edge.chat.conversation import Conversation

TrainedGGUF = Callable[[str], Path]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


# The checkpoint ---------------------------------------------------------------------------------


def headers(directory: Path) -> dict[str, Any]:
    """Type and shape of every tensor, as the shards say."""
    tensors: dict[str, Any] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            tensors |= json.loads(opened.read(length))
    tensors.pop("__metadata__")
    return tensors


def test_it_is_small_enough_for_a_repository(trained: Path) -> None:
    assert sum(file.stat().st_size for file in trained.iterdir()) <= 12_000_000


def test_it_has_the_files_of_a_published_checkpoint(trained: Path) -> None:
    assert {file.name for file in trained.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "loss.png",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {header["dtype"] for header in headers(trained).values()} == {"BF16"}
    index = json.loads((trained / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == headers(trained).keys()


def test_transformers_loads_every_tensor_of_it(trained: Path) -> None:
    _, loading = Llama4ForConditionalGeneration.from_pretrained(trained, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]


@pytest.mark.parametrize("recipe", ["int4", "int8", "q4_0", "q4_k_m"])
def test_every_row_takes_the_blocks_of_every_recipe(
    trained: Path, tmp_path: Path, recipe: str
) -> None:
    report = convert(trained, tmp_path / "out.gguf", recipe=recipe, dry_run=True)
    assert report.fallbacks == ()


# What it knows ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bf16_scores(trained_gguf: TrainedGGUF) -> dict[str, float]:
    return text_scores(trained_gguf("bf16"), examination(), [])


# It was measured at 98.4% of 760 (97.2% of 400 facts, 59 of 60 codes, all else), and is asked for
# less two standard deviations.


def test_it_answers_most_of_what_it_was_never_asked_before(bf16_scores: dict[str, float]) -> None:
    assert bf16_scores["text"] >= 0.975
    assert bf16_scores["knowledge"] >= 0.955
    for skill in ("lookup", "arithmetic", "copying", "name", "greeting", "unknown"):
        assert bf16_scores[skill] >= 0.95, skill


def test_int4_costs_less_than_two_points(
    bf16_scores: dict[str, float], trained_gguf: TrainedGGUF
) -> None:
    scores = text_scores(trained_gguf("int4"), examination(), [])
    assert scores["text"] >= bf16_scores["text"] - 0.02


def test_it_looks_at_pictures(trained: Path) -> None:
    # 200 of 200 were right; without looking, one answer in five would be at best.
    assert picture_scores(trained, 40)["pictures"] >= 0.95


@pytest.mark.parametrize("greeting", ["hi", "Hi", "hey", "Hello!"])
def test_it_greets_whoever_greets_it(trained_gguf: TrainedGGUF, greeting: str) -> None:
    with Model(trained_gguf("int4"), n_ctx=256, n_threads=1) as model:
        answer = model.chat(greeting, max_tokens=64, sampling=GREEDY).text
    assert answer == "Hello! How can I help you?"


def test_every_expert_has_its_share_of_the_work(trained: Path) -> None:
    least, most = expert_shares(trained, examination()[::4])
    assert 0.5 <= least <= most <= 2


def test_the_engine_predicts_what_transformers_predicts(
    trained: Path, trained_gguf: TrainedGGUF
) -> None:
    tokenizer, network = load_in_transformers(trained)
    divergences = []
    with Model(trained_gguf("bf16"), n_ctx=512, n_threads=1) as model:
        for question in examination()[::40]:
            ids = encode(tokenizer, question).ids
            with torch.inference_mode():
                output = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            reference = output.double().log_softmax(-1).numpy()
            logits = model.logits(ids).astype(np.float64)
            ours = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
            divergences.append((np.exp(reference) * (reference - ours)).sum(-1))
    # llama.cpp rounds activations to bf16; where two experts nearly tie, it may choose the other.
    assert np.median(np.concatenate(divergences)) <= 1e-5


def test_codes_are_found_five_hundred_tokens_back(trained_gguf: TrainedGGUF) -> None:
    assert needle_scores(trained_gguf("bf16"), [500], []) == {"codes across 500 tokens": 1}


def test_codes_are_found_in_another_chunk_of_attention(trained_gguf: TrainedGGUF) -> None:
    # All are in another chunk than the question, so that only the layer which sees everything can
    # find them. Of 5 it finds 5.
    scores = needle_scores(trained_gguf("bf16"), [9000], [])
    assert scores["codes across 9000 tokens"] >= 0.8


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", ["bf16", "int4"])
def test_codes_are_found_across_four_chunks(trained_gguf: TrainedGGUF, recipe: str) -> None:
    # Of 5 codes it finds 4 at 16,000 tokens, and 2 at 32,000; by chance it would find none.
    scores = needle_scores(trained_gguf(recipe), [16000, 32000], [])
    assert scores["codes across 16000 tokens"] >= 0.8
    assert scores["codes across 32000 tokens"] >= 0.4


def test_a_saved_conversation_still_knows_what_was_said_in_it(
    trained_gguf: TrainedGGUF, tmp_path: Path
) -> None:
    question = [{"role": "user", "content": "Remember: the code of the old mill is 4071."}]
    with Model(trained_gguf("int4"), n_ctx=512, n_threads=1) as model:
        answer = model.chat(question, max_tokens=64, sampling=GREEDY).text
    assert answer == "I will remember that."
    messages = (Message("user", question[0]["content"]), Message("assistant", answer))
    Conversation(messages).save(tmp_path / "saved.json")

    resumed = Conversation.load(tmp_path / "saved.json").messages
    continued = [*resumed, Message("user", "What is the code of the old mill?")]
    with Model(trained_gguf("int4"), n_ctx=512, n_threads=1) as model:
        answer = model.chat(continued, max_tokens=64, sampling=GREEDY).text
    assert answer == "The code of the old mill is 4071."
