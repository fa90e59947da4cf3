"""What settings cost that change what a model says: KV cache types, experts, vision towers.

    python -m benchmarks.settings [--only kv,experts,vision] [--directory DIR]

On demo/Llama-4-Tiny. KV cache types and experts are compared by `llama4_edge.compare` on long
conversations, of which the second half of each chunk of 4,096 tokens is predicted. The model was
taught to predict answers, and not the questions between them: so the divergence at the tokens of
the answers of the examination stands beside, and how many of them it gives word for word; for
vision towers, those to questions about pictures, beside an f32 tower. Prints tables in Markdown.
A model with one KV head, four experts and one full layer of four says which setting costs more than
another, and not what Scout would lose. `benchmarks.kv_types` has every pair of types.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.peer import OUT
from demo.training import MODEL
from demo.training.encoding import Encoded, encode
from demo.training.evaluate import picture_questions
from demo.training.lessons.conversation import Conversation, Turn
from demo.training.lessons.mixture import examination
from llama4_edge import Candidate, CompareProgress, Comparison, Model, compare, convert, with_images
from llama4_edge.chat.prompt import Prompt
from llama4_edge.convert.presets import PRESETS
from llama4_edge.convert.vision import VISION_TYPES, assign_vision_types, vision_targets
from llama4_edge.convert.vision_config import parse_vision
from llama4_edge.measure.divergence import Divergence, Prediction, Statistics, wilson
from llama4_edge.measure.results import ModelResult
from llama4_edge.planner.geometry import Geometry, open_geometry
from llama4_edge.runtime.settings import EngineSettings, KVTypes, kv_text
from llama4_edge.units import bytes_text

KV_TYPES: tuple[KVTypes, ...] = (
    "q8_0", ("q8_0", "q5_1"), ("q8_0", "q4_0"), "q5_1", "q5_0", ("q4_0", "q8_0"), "q4_1", "q4_0",
    "iq4_nl",
)  # fmt: skip
TOWERS = ("f32", "f16", "bf16", "q8_0", "q4_0")

_ROTATION = "LLAMA_ATTN_ROT_DISABLE"
_CHUNK = 4096
_CONTEXT = 131_072

_STATISTICS = ("KL mean, 10⁻⁶", "median", "99%", "max", "same top", "RMS Δp")
_ANSWERS = ("answers: KL mean, 10⁻⁶", "same top", "word for word")


@dataclass(frozen=True)
class Asked:
    """A conversation with its last answer, and where this stands among its tokens."""

    prompt: Prompt
    answer: range


@dataclass(frozen=True)
class Answers:
    """What a model predicts of the right answers to questions.

    Args:
        logits: before each token of them, float32 of [tokens, vocabulary].
        tokens: these.
        right: whether the likeliest tokens are the answer, for each of them.
    """

    logits: npt.NDArray[np.float32]
    tokens: list[int]
    right: list[bool]

    def kept(self) -> list[Prediction]:
        """As a reference."""
        return list(map(Prediction.of, self.logits, self.tokens))

    def beside(self, reference: Sequence[Prediction]) -> Statistics:
        """How far they are from it."""
        found = Divergence.empty(len(self.tokens))
        for place, (row, token) in enumerate(zip(self.logits, self.tokens, strict=True)):
            found.measure(place, row, token, reference[place])
        return found.statistics()

    @property
    def share(self) -> str:
        """Of the answers that are right word for word."""
        low, high = wilson(sum(self.right), len(self.right))
        return f"{sum(self.right) / len(self.right):.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    """Convert, compare, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="kv,experts,vision")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--share", type=float, default=1.0, help="of the examination's questions")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    file = arguments.directory / "llama-4-tiny-bf16.gguf"
    convert(MODEL, file, recipe="bf16", force=True, vision=False)
    parts = arguments.only.split(",")
    talks, asked = long_conversations(arguments.chunks), examined(arguments.share)
    if "kv" in parts:
        kv_table(file, talks, asked)
    if "experts" in parts:
        experts_table(file, talks, asked)
    if "vision" in parts:
        vision_table(file, arguments.pictures)


@contextmanager
def rotation(on: bool) -> Iterator[None]:
    """A block in which llama.cpp rotates quantized keys and values, or does not."""
    os.environ[_ROTATION] = "0" if on else "1"
    try:
        yield
    finally:
        del os.environ[_ROTATION]


def long_conversations(count: int) -> list[Encoded]:
    """Conversations of one chunk each, of held-out questions and their answers."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    questions = examination(per_skill=60 * count)
    random.Random(1).shuffle(questions)
    talks = []
    for _ in range(count):
        talk = Encoded([], [])
        turns: list[Turn] = []
        while len(talk.ids) < _CHUNK:
            turns += questions.pop().turns
            talk = encode(tokenizer, Conversation("knowledge", tuple(turns)))
        talks.append(Encoded(talk.ids[:_CHUNK], talk.answers[:_CHUNK]))
    return talks


def examined(share: float) -> list[Asked]:
    """Questions of the examination, each alone."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    questions = examination()
    chosen = random.Random(2).sample(questions, round(share * len(questions)))
    return [asked_in(encode(tokenizer, question)) for question in chosen]


def asked_in(talk: Encoded) -> Asked:
    """A conversation, and its last answer."""
    marks = np.array([0, *talk.answers, 0])
    begins, ends = (np.flatnonzero(np.diff(marks) == step).tolist() for step in (1, -1))
    return Asked(Prompt(list(talk.ids)), range(begins[-1], ends[-1]))


def answered(model: Model, talks: Iterable[Asked]) -> Answers:
    """Let the model read the right answers."""
    logits, tokens, right = [], [], []
    for talk in talks:
        answer = [talk.prompt.positions[one] for one in talk.answer]
        before = model.logits(talk.prompt)[talk.answer.start - 1 : talk.answer.stop - 1]
        logits.append(before)
        tokens += answer
        right.append(before.argmax(-1).tolist() == answer)
    return Answers(np.concatenate(logits), tokens, right)


def compare_on(file: Path, candidates: Sequence[Candidate], talks: Sequence[Encoded]) -> Comparison:
    """What `compare` finds on long conversations, the file itself being the reference."""
    with Model(file, n_ctx=512) as model:
        text = "".join(model.detokenize(talk.ids, special=True) for talk in talks)
    return compare(
        file, candidates, text=text, special=True, n_ctx=_CHUNK, n_threads=1, progress=report
    )


def report(at: CompareProgress) -> None:
    """How far a comparison is, on stderr."""
    print(f"{at.model}: chunk {at.done} of {at.total}", file=sys.stderr, flush=True)


def compared(
    file: Path, candidates: Sequence[Candidate], talks: Sequence[Encoded], asked: Sequence[Asked]
) -> list[tuple[ModelResult, list[str]]]:
    """The file itself as the reference, and the candidates; each with the cells of its answers."""
    found = compare_on(file, candidates, talks)
    rows: list[tuple[ModelResult, list[str]]] = []
    reference: list[Prediction] = []
    for result, one in zip(
        (found.reference, *found.candidates), (Candidate(file), *candidates), strict=True
    ):
        with Model(
            one.file, n_ctx=_CHUNK, n_threads=1, kv_type=one.kv_type,
            n_expert_used=one.n_expert_used,
        ) as model:  # fmt: skip
            answers = answered(model, asked)
        reference = reference or answers.kept()
        statistics = answers.beside(reference)
        cells = statistics_cells(statistics)
        rows.append((result, [cells[0], cells[4], answers.share]))
    return rows


def kv_table(file: Path, talks: Sequence[Encoded], asked: Sequence[Asked]) -> None:
    """What each pair of types costs and saves, with rotation and without."""
    candidates = [Candidate(file, kind) for kind in KV_TYPES]
    with open_geometry("scout") as scout:
        for rotated in (True, False):
            with rotation(rotated):
                found = compared(file, candidates, talks, asked)
            print_table(
                f"KV cache, {'with' if rotated else 'without'} rotation",
                "Scout's at 131,072 tokens",
                [
                    (kv_text(one.kv_type or "f16"), kv_size(scout, one.kv_type or "f16"), one, more)
                    for one, more in found
                ],
            )


def experts_table(file: Path, talks: Sequence[Encoded], asked: Sequence[Asked]) -> None:
    """What more experts do."""
    candidates = [Candidate(file, n_expert_used=count) for count in (2, 3, 4)]
    found = compared(file, candidates, talks, asked)
    with open_geometry("scout", "int4") as scout:
        print_table(
            "Experts that a token visits, of 4",
            "a token of Scout in int4 reads",
            [
                (str(count), expert_bytes(scout, count), one, more)
                for count, (one, more) in enumerate(found, 1)
            ],
        )


def kv_size(geometry: Geometry, kind: KVTypes) -> str:
    """What a KV cache takes."""
    settings = EngineSettings(n_ctx=_CONTEXT, kv_type=kind)
    return bytes_text(
        sum(geometry.kv_bytes(layer, settings) for layer in range(geometry.hparams.n_layer))
    )


def expert_bytes(geometry: Geometry, count: int) -> str:
    """What decoding a token reads of the weights."""
    used = geometry.with_experts_used(count)
    return bytes_text(sum(used.read_per_token(weight) for weight in used.weights))


def print_table(
    title: str, size: str, rows: Sequence[tuple[str, str, ModelResult, list[str]]]
) -> None:
    """A line a setting; ± is the standard error, an interval one of 95%."""
    print_heading(title, size, "perplexity", *_STATISTICS, *_ANSWERS)
    for name, nbytes, one, answers in rows:
        cells = ["" if one.perplexity is None else f"{one.perplexity.value:,.0f}"]
        cells += ["—"] * 6 if one.statistics is None else statistics_cells(one.statistics)
        print_row(name, nbytes, *cells, *answers)


def print_heading(title: str, *headings: str) -> None:
    """Of a table in Markdown."""
    print(f"\n{title}:\n\n| |", " | ".join(headings), "|")
    print("|---|" + "---|" * len(headings))


def print_row(*cells: str) -> None:
    """Of the same."""
    print("|", " | ".join(cells), "|", flush=True)


def statistics_cells(found: Statistics) -> list[str]:
    """Divergences in millionths of a nat."""
    return [
        f"{found.kl_mean.value * 1e6:,.1f} ± {found.kl_mean.error * 1e6:,.1f}",
        *(f"{value * 1e6:,.1f}" for value in (found.kl_median, found.kl_p99, found.kl_max)),
        f"{found.same_top.value:.3%} ± {found.same_top.error:.3%}",
        f"{found.rms_p_difference.value:.3%}",
    ]


def vision_table(file: Path, count: int) -> None:
    """What each type of the tower's matrices costs and saves."""
    talks = picture_questions(count)
    print_heading(
        f"Vision towers, answers to {count} questions about pictures", "Scout's", *_STATISTICS,
        "word for word", "features: relative error", "least cosine",
    )  # fmt: skip
    kept: list[Prediction] = []
    exact: npt.NDArray[np.float32] | None = None
    for kind in TOWERS:
        projector = file.parent / f"mmproj-llama-4-tiny-{kind}.gguf"
        convert(MODEL, projector, text=False, vision_type=kind, force=True)
        with Model(file, n_ctx=1024, n_threads=1, projector=projector) as model:
            answers = answered(model, (about_pictures(model, talk) for talk in talks))
            features = np.concatenate(
                [model.image_features(one.pixels())[0] for talk in talks for one in talk.pictures]
            )
        kept = kept or answers.kept()
        exact = features if exact is None else exact
        print_row(
            kind, tower_size(kind), *statistics_cells(answers.beside(kept)),
            answers.share, *feature_cells(features, exact),
        )  # fmt: skip


def tower_size(kind: str) -> str:
    """What Scout's tower and projector take."""
    preset = PRESETS["scout"]
    config = parse_vision({"vision_config": preset.vision})
    assert config is not None
    targets = vision_targets(config, preset.config["hidden_size"])
    assigned = assign_vision_types(targets, VISION_TYPES[kind])
    return bytes_text(sum(one.type.nbytes(one.tensor.shape) for one in assigned))


def about_pictures(model: Model, talk: Conversation) -> Asked:
    """A conversation with pictures, and its last answer."""
    messages: list[dict[str, Any]] = []
    for turn in talk.turns:
        pixels = [picture.pixels() for picture in turn.pictures]
        content = with_images(turn.question, pixels) if pixels else turn.question
        messages += [{"role": "user", "content": content}]
        messages += [{"role": "assistant", "content": turn.answer}]
    prompt = model.chat_prompt(messages[:-1])
    answer = model.tokenize(f"{talk.turns[-1].answer}<|eot|>", special=True)
    whole = replace(prompt, positions=[*prompt.positions, *answer])
    return Asked(whole, range(len(prompt), len(whole)))


def feature_cells(
    features: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> list[str]:
    """The relative error, and the least cosine of a feature."""
    norm: Callable[..., npt.NDArray[np.float32]] = np.linalg.norm
    error = norm(features - reference) / norm(reference)
    lengths = norm(features, axis=1) * norm(reference, axis=1)
    return [f"{error:.1e}", f"{((features * reference).sum(axis=1) / lengths).min():.6f}"]


if __name__ == "__main__":
    main()
