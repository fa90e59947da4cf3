"""`llama4 convert --fit`, `--target-size` and `--target-bpw`, as a person gives them."""

from __future__ import annotations

import json
from pathlib import Path

from llama4_edge import fit
from tests.command_line import Command, the_error


def test_what_was_chosen_is_shown_written_down_and_written_again(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    chosen = fit(scout_checkpoint, target_bpw=4.6)
    done = llama4(
        "convert", scout_checkpoint, "-o", "a.gguf", "--no-vision", "--target-bpw", 4.6,
        "--save-recipe", "fit.json",
    )  # fmt: skip
    assert (done.exit_code, done.stderr) == (0, "")
    for reason in chosen.reasons:
        assert f"\n{reason.kind} " in f"\n{done.stdout}"
    assert "fits         4.6 bits a weight" in done.stdout
    assert f"{chosen.cost:.2g} nats" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["wrote", "a.gguf"]
    again = llama4(
        "convert", scout_checkpoint, "-o", "b.gguf", "--no-vision", "--recipe", "fit.json"
    )
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_json_has_the_report_and_the_fit(llama4: Command, scout_checkpoint: Path) -> None:
    done = llama4("convert", scout_checkpoint, "--dry-run", "--fit", "h100, 1k tokens", "--json")
    record = json.loads(done.stdout)
    assert record["recipe"] == "fit-h100-1k-tokens"
    assert record["outputs"][0].endswith("-fit-h100-1k-tokens.gguf")
    found = record["fit"]
    assert found["asked"] == "h100, 1k tokens" and found["plan"]["fits"]
    assert found["cost"] == sum(one["cost"] for one in found["tensors"])
    assert {"kind", "types", "bytes", "worth", "why"} <= found["reasons"][0].keys()


def test_errors_name_the_flags(llama4: Command, scout_checkpoint: Path) -> None:
    for flags, error in (
        (("--target-size", "1M"), "target_size (--target-size) is less than the fewest bits take"),
        (("--target-size", "much"), "target_size (--target-size) is outside its range"),
        (("--target-bpw", 99), "target_bpw (--target-bpw) is outside its range"),
        (("--fit", "h1000"), "there is no GPU called 'h1000'"),
        (("--fit", "1G ram", "--target-bpw", 4), "found 2 of them"),
    ):
        assert error in the_error(llama4("convert", scout_checkpoint, "--dry-run", *flags))
    for words, error in (
        (("--target-bpw", 4, "--recipe", "int4"), "leave out --recipe"),
        (("--target-bpw", 4, "--vision-only"), "leave out --recipe and --vision-only"),
        (("--save-recipe", "x.json"), "--save-recipe goes with --fit"),
    ):
        refused = llama4("convert", scout_checkpoint, "--dry-run", *words)
        assert refused.exit_code == 2 and error in " ".join(refused.stderr.split())


def test_where_the_recipe_cannot_be_written_is_seen_before_it_is_made(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    command = ("convert", scout_checkpoint, "-o", "a.gguf", "--target-bpw", 4.6, "--save-recipe")
    error = the_error(llama4(*command, "model.gguf"))
    assert "model.gguf exists, and is not a recipe file" in error
    assert "nowhere/x.json cannot be written" in the_error(llama4(*command, "nowhere/x.json"))
    refused = llama4(*command, "a.gguf")
    assert refused.exit_code == 2 and "are the same file" in refused.stderr
    assert (tmp_path / "model.gguf").read_bytes() == b"GGUF"
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_an_output_that_exists_is_refused_before_types_are_chosen(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"precious")
    done = llama4(
        "convert", scout_checkpoint, "-o", "a.gguf", "--target-bpw", 4.6, "--save-recipe", "x.json"
    )
    assert "a.gguf exists" in the_error(done)
    # The recipe is written as soon as there is one.
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_context_is_spoken_of_as_it_was_given(llama4: Command, scout_checkpoint: Path) -> None:
    error = the_error(llama4("convert", scout_checkpoint, "--dry-run", "--fit", "h100, 16M tokens"))
    assert "fit asks for a longer context than" in error and "'h100, 16M tokens'" in error
    assert "-c" not in error.split() and "n_ctx" not in error
