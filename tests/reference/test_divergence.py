"""Perplexity and divergence are llama-perplexity's on the same text, to its printed digits."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.peer import peer_environment, peer_tool
from demo.training import MODEL
from llama4_edge import Candidate, Statistics, compare, convert
from llama4_edge.runtime.settings import KVType

pytestmark = pytest.mark.heavy

# What llama-perplexity prints, and how many digits behind the point.
LINE = r"{}\s*:\s*(-?[\d.]+) ±\s*([\d.]+)"


def llama_perplexity(last: str, *arguments: object) -> str:
    """What it prints, `last` at the end: it may end before its log's thread has written that."""
    command = [str(peer_tool("llama-perplexity")), *map(str, arguments), "-t", "1"]
    for _ in range(20):
        done = subprocess.run(
            command, env=peer_environment(), capture_output=True, text=True, check=True
        )
        if last in (printed := done.stdout + done.stderr):
            return printed
    raise AssertionError(f"llama-perplexity did not print {last!r}:\n{printed[-2000:]}")


def numbers(pattern: str, text: str) -> tuple[float, ...]:
    match = re.search(pattern, text)
    assert match is not None, text[-2000:]
    return tuple(map(float, match.groups()))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("divergence")
    paths = {recipe: directory / f"{recipe}.gguf" for recipe in ("bf16", "int4", "q4_0")}
    for recipe, path in paths.items():
        convert(MODEL, path, recipe=recipe, vision=False)
    paths["text"] = directory / "text"
    documents = sorted((MODEL.parents[1] / "docs").rglob("*.md"))
    paths["text"].write_text("".join(path.read_text() for path in documents))
    return paths


# A chunk in one batch, and one in several.
@pytest.mark.parametrize(("n_ctx", "n_chunks"), [(512, 8), (2048, 2)])
def test_figures_are_those_of_llama_perplexity(
    files: dict[str, Path], tmp_path: Path, n_ctx: int, n_chunks: int
) -> None:
    base = tmp_path / "base"
    shape = ("-c", n_ctx, "-b", min(n_ctx, 2048), "--chunks", n_chunks)
    theirs = llama_perplexity(
        "Final estimate", "-m", files["bf16"], "-f", files["text"], "--save-all-logits", base,
        *shape,
    )  # fmt: skip
    found = compare(
        files["bf16"],
        [files["int4"], files["q4_0"]],
        text=files["text"].read_text(),
        n_ctx=n_ctx,
        n_chunks=n_chunks,
        n_threads=1,
    )
    ours = found.reference.perplexity
    assert ours is not None
    value, error = numbers(r"PPL = ([\d.]+) \+/- ([\d.]+)", theirs)
    # A perplexity of 200,000 is printed with ten digits, of which float32 has seven.
    assert (ours.value, ours.error) == pytest.approx((value, error), rel=1e-6)
    for recipe, candidate in zip(("int4", "q4_0"), found.candidates, strict=True):
        theirs = llama_perplexity(
            "Same top p:", "-m", files[recipe], "--kl-divergence-base", base, "--kl-divergence",
            *shape,
        )  # fmt: skip
        assert_same(candidate.statistics, theirs)


@pytest.mark.parametrize("types", [("q8_0", "q8_0"), ("q8_0", "q4_0")])
def test_and_so_are_those_of_another_kv_cache(
    files: dict[str, Path], tmp_path: Path, types: tuple[KVType, KVType]
) -> None:
    base = tmp_path / "base"
    model, text = files["int4"], files["text"]
    shape = ("-c", 512, "-b", 512, "--chunks", 8)
    llama_perplexity(
        "Final estimate", "-m", model, "-f", text, "--save-all-logits", base, *shape
    )  # fmt: skip
    theirs = llama_perplexity(
        "Same top p:", "-m", model, "--kl-divergence-base", base, "--kl-divergence", *shape,
        "-ctk", types[0], "-ctv", types[1],
    )  # fmt: skip
    found = compare(
        model, [Candidate(model, kv_type=types)], text=text.read_text(), n_chunks=8, n_threads=1
    )
    assert_same(found.candidates[0].statistics, theirs)


def assert_same(stats: Statistics | None, theirs: str) -> None:
    """Half of the last digit, and that of float32 sums in another order."""
    assert stats is not None
    value, error = numbers(LINE.format(r"Mean PPL\(Q\)"), theirs)
    assert stats.perplexity.value == pytest.approx(value, rel=1e-6)
    assert stats.perplexity.error == pytest.approx(error, rel=1e-5)
    digit = 1e-6
    value, error = numbers(LINE.format("Mean +KLD"), theirs)
    assert stats.kl_mean.value == pytest.approx(value, abs=digit)
    assert stats.kl_mean.error == pytest.approx(error, abs=digit)
    for name, value in (
        ("Median +KLD", stats.kl_median),
        (r"99\.0% +KLD", stats.kl_p99),
        ("Maximum KLD", stats.kl_max),
    ):
        assert value == pytest.approx(numbers(rf"{name}:\s*([\d.]+)", theirs)[0], abs=digit)
    for name, estimate in (
        ("RMS Δp +", stats.rms_p_difference),
        ("Same top p", stats.same_top),
    ):
        value, error = numbers(LINE.format(name), theirs)
        assert 100 * estimate.value == pytest.approx(value, abs=1e-3)
        assert 100 * estimate.error == pytest.approx(error, abs=1e-3)
