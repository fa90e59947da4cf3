"""`llama4_edge.compare`: on a text and on questions, saved and not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from llama4_edge import (
    Candidate,
    CompareProgress,
    Comparison,
    Question,
    compare,
    read_questions,
)
from llama4_edge.errors import DamagedTensorError, ModelFileError, OutputError, SettingError
from llama4_edge.runtime.workers.worker import running_worker
from tests.gguf_maker import TinyModel
from tests.tiny_model import with_chat_tokens

TEXT = "The quick brown fox jumps over the lazy dog, again and again. " * 12


def compared(*paths: Path | Candidate, **settings: object) -> Comparison:
    settings = {"text": TEXT, "n_ctx": 64, "n_threads": 1, **settings}
    return compare(paths[0], paths[1:], **settings)  # type: ignore[arg-type]


def test_a_model_is_no_distance_from_itself_and_another_is(
    scout_bf16: Path, scout_int4: Path
) -> None:
    found = compared(scout_bf16, scout_bf16, scout_int4)
    same, int4 = (one.statistics for one in found.candidates)
    assert same is not None and int4 is not None
    assert abs(same.kl_mean.value) < 1e-5 and same.same_top.value == 1
    assert same.perplexity_ratio.value == pytest.approx(1, abs=1e-5)
    assert 1e-4 < int4.kl_mean.value < int4.kl_p99 <= int4.kl_max
    assert int4.kl_median < int4.kl_p99
    assert found.n_tokens == found.n_chunks * 31
    assert found.reference.perplexity == found.candidates[0].perplexity
    assert found.candidates[1].bytes == scout_int4.stat().st_size


def test_the_predictions_are_those_that_logits_give(scout_bf16: Path, scout_int4: Path) -> None:
    from llama4_edge import Model

    found = compared(scout_bf16, scout_int4, n_chunks=1)
    logits = []
    for path in (scout_bf16, scout_int4):
        with Model(path, n_ctx=64, n_threads=1) as model:
            tokens = model.tokenize(TEXT, add_bos=True)[:64]
            logits.append(model.logits(tokens)[32:63].astype(np.float64))
    p, q = (rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True) for rows in logits)
    nll = -q[np.arange(31), tokens[33:]]
    statistics = found.candidates[0].statistics
    assert statistics is not None
    # Steps of 16 nats / 65,535; and other batches than those of `logits`.
    assert statistics.kl_mean.value == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=0.02)
    assert statistics.perplexity.value == pytest.approx(np.exp(nll.mean()), rel=1e-3)


def test_models_may_lie_on_several_machines(scout_bf16: Path, scout_int4: Path) -> None:
    here = compared(scout_bf16, scout_int4, n_chunks=2)
    with running_worker(port=0, n_threads=1) as worker:
        there = compared(scout_bf16, scout_int4, n_chunks=2, workers=(worker.endpoint,))
    one, other = here.candidates[0].statistics, there.candidates[0].statistics
    assert one is not None and other is not None
    # Not to the last digit: weights of a worker are not interleaved for this CPU.
    assert other.kl_mean.value == pytest.approx(one.kl_mean.value, rel=0.1)
    assert there.reference.perplexity is not None and here.reference.perplexity is not None
    assert there.reference.perplexity.value == pytest.approx(
        here.reference.perplexity.value, rel=1e-4
    )


def test_control_tokens_in_a_text_are_taken_for_themselves_where_that_is_asked_for(
    scout_bf16: Path,
) -> None:
    from llama4_edge import Model

    text = "<|header_start|>user<|header_end|>\n\nHello, you!<|eot|>" * 40
    found = [compared(scout_bf16, text=text, special=special) for special in (False, True)]
    with Model(scout_bf16, n_ctx=64, n_threads=1) as model:
        counts = [len(model.tokenize(text, special=it, add_bos=True)) for it in (False, True)]
    assert [one.n_chunks for one in found] == [count // 64 for count in counts]
    assert counts[1] < counts[0]


def test_saved_predictions_give_the_same(
    scout_bf16: Path, scout_int4: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "scout.reference"
    direct = compared(scout_bf16, scout_int4, save=saved)
    again = compare(saved, [scout_int4], n_threads=1)
    assert again.candidates == direct.candidates
    assert again.reference.perplexity == direct.reference.perplexity
    for unused in (
        {"text": TEXT},
        {"n_ctx": 64},
        {"n_chunks": 1},
        {"special": True},
        {"save": tmp_path / "x"},
    ):
        with pytest.raises(SettingError, match=f"saved predictions.*found {next(iter(unused))}"):
            compare(saved, [scout_int4], **unused)
    with pytest.raises(OutputError, match="exists"):
        compared(scout_bf16, save=saved)


def test_a_candidate_is_the_same_file_opened_otherwise(scout_bf16: Path) -> None:
    names: list[str] = []
    others = (
        Candidate(scout_bf16, kv_type="q8_0"),
        Candidate(scout_bf16, kv_type=("q8_0", "q4_0")),
        Candidate(scout_bf16, n_expert_used=2),
    )
    found = compared(scout_bf16, *others, progress=lambda one: names.append(one.model))
    q8_0, mixed, experts = (one.statistics for one in found.candidates)
    assert q8_0 is not None and mixed is not None and experts is not None
    assert 1e-6 < q8_0.kl_mean.value < mixed.kl_mean.value < experts.kl_mean.value
    assert [one.label for one in (found.reference, *found.candidates)] == [
        scout_bf16.name,
        f"{scout_bf16.name}, KV q8_0",
        f"{scout_bf16.name}, K q8_0 and V q4_0",
        f"{scout_bf16.name}, 2 experts",
    ]
    assert list(dict.fromkeys(names)) == [str(scout_bf16), *(one.name for one in others)]
    record = found.as_dict()
    assert record["reference"]["kv_type"] == ["f16", "f16"]
    assert record["candidates"][1]["kv_type"] == ["q8_0", "q4_0"]
    assert record["candidates"][2]["n_expert_used"] == 2


def test_settings_that_a_candidate_cannot_have_are_refused_first(
    scout_bf16: Path, tiny_path: Path
) -> None:
    steps: list[CompareProgress] = []
    with pytest.raises(SettingError, match="n_expert_used is more than the model has"):
        compared(tiny_path, Candidate(tiny_path, n_expert_used=16), progress=steps.append)
    with pytest.raises(SettingError, match=r"keys of its heads cannot be kept as q4_0"):
        compared(tiny_path, Candidate(tiny_path, kv_type="q4_0"), progress=steps.append)
    with pytest.raises(SettingError, match="kv_type"):
        Candidate(scout_bf16, kv_type="q3_0")  # type: ignore[arg-type]
    assert not steps


def test_predictions_of_a_model_that_is_unsure_of_everything_take_two_bytes_a_token(
    full_vocabulary_bf16: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "unsure.reference"
    other = Candidate(full_vocabulary_bf16, n_expert_used=2)
    found = compared(full_vocabulary_bf16, other, n_ctx=16, n_chunks=2, save=saved)
    # Random weights find no token much likelier than another: llama-perplexity keeps as much.
    most = found.n_tokens * (2 * 202_048 + 20)
    assert 0.99 * most < saved.stat().st_size < most + 2**12
    statistics = found.candidates[0].statistics
    assert statistics is not None and 1e-4 < statistics.kl_mean.value < 1
    assert compare(saved, [other], n_threads=1).candidates == found.candidates


def test_progress_counts_each_model(scout_bf16: Path, scout_int4: Path) -> None:
    steps: list[CompareProgress] = []
    found = compared(scout_bf16, scout_int4, progress=steps.append)
    count = found.n_chunks
    assert [(one.model, one.done, one.total) for one in steps] == [
        (os.fspath(path), number, count)
        for path in (scout_bf16, scout_int4)
        for number in range(1, count + 1)
    ]


def test_questions_are_answered_by_likelihood(scout_bf16: Path, scout_int4: Path) -> None:
    # Longer than a chunk of the text.
    questions = [
        Question(f"What is {n}?" + " Or is it?" * 20, ("this", "that", "neither"), n % 3)
        for n in range(6)
    ]
    found = compared(scout_bf16, scout_int4, text=None, questions=questions)
    right = found.reference.accuracy
    assert right is not None and right.same is None
    assert right.value == sum(map(int.__eq__, right.chosen, (n % 3 for n in range(6)))) / 6
    assert right.interval[0] < right.value < right.interval[1]
    other = found.candidates[0].accuracy
    assert other is not None
    assert other.same == sum(map(int.__eq__, right.chosen, other.chosen)) / 6
    assert found.reference.perplexity is None and found.n_tokens == 0


def test_what_cannot_be_compared_is_refused(scout_bf16: Path, tiny_path: Path) -> None:
    with pytest.raises(SettingError, match="nothing to compare"):
        compare(scout_bf16)
    with pytest.raises(SettingError, match=r"too short.*found .* tokens.*at least 1024"):
        compare(scout_bf16, text="a short text")
    steps: list[CompareProgress] = []
    with pytest.raises(SettingError, match="another vocabulary"):
        compared(scout_bf16, tiny_path, progress=steps.append)
    with pytest.raises(ModelFileError, match="does not exist"):
        compared(scout_bf16, scout_bf16.with_name("none.gguf"), progress=steps.append)
    assert not steps  # the reference was not read for it
    with pytest.raises(ModelFileError, match="does not exist"):
        compared(scout_bf16.with_name("none.gguf"))


def test_a_model_that_computes_nan_is_named(tmp_path: Path) -> None:
    broken: TinyModel = with_chat_tokens()
    broken.tensors["output_norm.weight"] = np.full_like(
        broken.tensors["output_norm.weight"], np.nan
    )
    with pytest.raises(DamagedTensorError, match=r"broken.gguf cannot be compared.*NaN"):
        compared(broken.write(tmp_path / "broken.gguf"))


def test_a_file_of_questions_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        '{"question": "1 + 1?", "choices": ["1", "2"], "answer": 1}\n\n'
        '{"question": "Best?", "choices": ["a", "b", "c"], "answer": "C", "source": "here"}\n'
    )
    assert read_questions(path) == [
        Question("1 + 1?", ("1", "2"), 1),
        Question("Best?", ("a", "b", "c"), 2),
    ]


def test_lines_of_questions_end_where_json_lines_end(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    question = Question("a\u2028b\x85c", tuple(f"choice {n}\x1c" for n in range(100)), 99)
    record = {"question": question.text, "choices": question.choices, "answer": 99}
    path.write_bytes(json.dumps(record, ensure_ascii=False).encode() + b"\r\n")
    assert read_questions(path) == [question]


def test_a_choice_is_a_whole_answer(scout_bf16: Path) -> None:
    from llama4_edge import Model

    question = Question("Where?", ("in", "in the"), 0)
    right = compared(scout_bf16, text=None, questions=[question]).reference.accuracy
    with Model(scout_bf16, n_ctx=64, n_threads=1) as model:
        before = list(model.chat_prompt([{"role": "user", "content": "Where?"}]).token_ids)
        likelihoods = [
            sum(
                one.logprob
                for one in model.score(
                    [*before, *model.tokenize(f"{choice}<|eot|>", special=True)]
                )[len(before) - 1 :]
            )
            for choice in question.choices
        ]
    assert right is not None and right.chosen == (likelihoods.index(max(likelihoods)),)


def test_a_question_that_is_too_long_is_named_before_the_text_is_read(scout_bf16: Path) -> None:
    steps: list[CompareProgress] = []
    questions = [Question("Short?", ("a", "b"), 0), Question("Long? " * 5000, ("a", "b"), 0)]
    with pytest.raises(SettingError, match=r"question 2 is too long for .*at most"):
        compared(scout_bf16, questions=questions, progress=steps.append)
    assert not steps


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "has no questions"),
        ("nonsense", "line 1 is not JSON"),
        ("[]", "an object|a JSON object"),
        ('{"choices": ["a", "b"], "answer": 0}', "no question"),
        (
            '{"question": "x", "choices": ["a"], "answer": 0}',
            "line 1: choices are too few, found 1",
        ),
        ('{"question": "x", "choices": ["a", ""], "answer": 0}', r"line 1: choices\[1\] is empty"),
        ('{"question": "x", "choices": ["a", "a"], "answer": 1}', r"choices\[1\] is there twice"),
        ('{"question": 1, "choices": ["a", "b"], "answer": 0}', "^[^ ]*, line 1 has an invalid qu"),
        ('{"question": "x", "choices": ["a", "b"], "answer": 2}', "invalid answer"),
        ('{"question": "x", "choices": ["a", "b"], "answer": "C"}', "invalid answer"),
        ('{"question": "x", "choices": "ab", "answer": 0}', "a list"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    with pytest.raises(SettingError, match=reason):
        read_questions(path)
