"""A GGUF is divided into parts and put together again, and stays what it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from llama4_edge import Model, Progress, convert, merge, split
from llama4_edge.convert import output, slabs
from llama4_edge.convert.from_gguf import MAX_PARTS
from llama4_edge.errors import ModelFileError, OutputError, SettingError
from llama4_edge.runtime.files.model_file import check_model_file
from tests.command_line import Command, the_error
from tests.gguf_maker import STR, Value, tiny_model, tiny_projector


def sizes(paths: tuple[str, ...]) -> list[int]:
    """Bytes of the tensors of each part, with their padding."""
    return [
        sum(-(-int(tensor.n_bytes) // 32) * 32 for tensor in GGUFReader(path).tensors)
        for path in paths
    ]


def names(paths: tuple[str, ...]) -> list[str]:
    return [tensor.name for path in paths for tensor in GGUFReader(path).tensors]


def test_merging_gives_back_the_bytes_that_were_split(tiny_path: Path, tmp_path: Path) -> None:
    parts = split(tiny_path, tmp_path / "p.gguf", split_size=100_000)
    assert [Path(path).name for path in parts.outputs[:2]] == [
        f"p-00001-of-{len(parts.outputs):05d}.gguf", f"p-00002-of-{len(parts.outputs):05d}.gguf",
    ]  # fmt: skip
    assert parts.recipe == "as stored" and parts.bytes > tiny_path.stat().st_size
    for number, part in enumerate(parts.outputs):
        report = merge(part, tmp_path / f"{number}.gguf")
        assert Path(report.output).read_bytes() == tiny_path.read_bytes()


def test_llama_cpp_loads_the_parts_as_the_model(tiny_path: Path, tmp_path: Path) -> None:
    parts = split(tiny_path, tmp_path / "p", parts=3)
    assert check_model_file(parts.output).tensors
    logits = []
    for path in (tiny_path, parts.output):
        with Model(path, n_ctx=64, n_threads=1) as model:
            logits.append(model.logits(model.tokenize("the")))
    assert np.array_equal(logits[0], logits[1])


def test_no_part_holds_more_than_its_size_but_one_of_a_single_tensor(
    tiny_path: Path, tmp_path: Path
) -> None:
    report = split(tiny_path, tmp_path / "p", split_size=50_000)
    for path, held in zip(report.outputs, sizes(report.outputs), strict=True):
        assert held <= 50_000 or len(GGUFReader(path).tensors) == 1
    assert names(report.outputs) == names((str(tiny_path),))


@pytest.mark.parametrize("count", [2, 3, 7, 55])
def test_so_many_parts_as_are_asked_for_are_as_even_as_tensors_allow(
    tiny_path: Path, tmp_path: Path, count: int
) -> None:
    report = split(tiny_path, tmp_path / "p", parts=count)
    held = sizes(report.outputs)
    assert len(held) == count and min(held) > 0
    (whole,), largest = sizes((str(tiny_path),)), 263 * 64 * 4
    assert max(held) <= max(whole // count + largest, largest)
    assert names(report.outputs) == names((str(tiny_path),))


def test_parts_can_be_divided_anew(tiny_path: Path, tmp_path: Path) -> None:
    first = split(tiny_path, tmp_path / "p", parts=2)
    second = split(first.outputs[1], tmp_path / "q", parts=5)
    direct = split(tiny_path, tmp_path / "r", parts=5)
    assert [Path(path).read_bytes() for path in second.outputs] == [
        Path(path).read_bytes() for path in direct.outputs
    ]


def test_an_alignment_goes_over(tmp_path: Path) -> None:
    model = tiny_model()
    model.keys["general.alignment"] = Value(256, model.keys["llama4.block_count"].type)
    source = model.write(tmp_path / "a.gguf")
    parts = split(source, tmp_path / "p", parts=2)
    assert merge(parts.output, tmp_path / "b.gguf").bytes == source.stat().st_size
    assert (tmp_path / "b.gguf").read_bytes() == source.read_bytes()
    with Model(parts.output, n_ctx=64, n_threads=1) as opened:
        assert opened.tokenize("the")


def test_numbers_that_are_not_finite_are_copied_too(tmp_path: Path) -> None:
    """Nobody asked whether the model is sound; `inspect --check` says it."""
    model = tiny_model()
    model.tensors["output.weight"][0, 0] = np.nan
    source = model.write(tmp_path / "a.gguf")
    parts = split(source, tmp_path / "p", parts=2)
    assert Path(merge(parts.output, tmp_path / "b.gguf").output).read_bytes() == source.read_bytes()


def test_an_interrupted_copy_goes_on(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 20_000)
    monkeypatch.setattr(output, "COMMIT_SECONDS", 0.0)

    def stop(step: Progress) -> None:
        if step.bytes_done > step.bytes_total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split(tiny_path, tmp_path / "p", parts=2, progress=stop)
    assert not list(tmp_path.glob("*.gguf"))
    report = split(tiny_path, tmp_path / "p", parts=2)
    assert 0 < report.resumed_at < 1
    assert merge(report.output, tmp_path / "b.gguf").output
    assert (tmp_path / "b.gguf").read_bytes() == tiny_path.read_bytes()


def test_what_exists_stays_unless_forced_and_a_source_always(
    tiny_path: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copy(tiny_path, tmp_path / "a.gguf"))
    parts = split(source, tmp_path / "p", parts=2)
    with pytest.raises(OutputError, match="exists"):
        split(source, tmp_path / "p", parts=2)
    split(source, tmp_path / "p", parts=2, force=True)
    with pytest.raises(OutputError, match="is a file of the model that is read"):
        split(parts.output, tmp_path / "p", parts=2, force=True)
    with pytest.raises(OutputError, match="is a file of the model that is read"):
        merge(parts.output, parts.outputs[1], force=True)
    assert merge(parts.output, source, force=True).bytes == tiny_path.stat().st_size


def test_a_dry_run_writes_nothing(tiny_path: Path, tmp_path: Path) -> None:
    report = split(tiny_path, tmp_path / "p", parts=2, dry_run=True)
    assert len(report.outputs) == 2 and list(tmp_path.iterdir()) == []


def test_what_divides_nothing_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    for size, count in ((None, None), (100, 2)):
        with pytest.raises(SettingError, match="says how a model is divided"):
            split(tiny_path, tmp_path / "p", split_size=size, parts=count)
    with pytest.raises(SettingError, match="fits into one part"):
        split(tiny_path, tmp_path / "p", split_size=10**9)
    for parts in (1, MAX_PARTS + 1):
        with pytest.raises(SettingError, match="parts"):
            split(tiny_path, tmp_path / "p", parts=parts)
    with pytest.raises(SettingError, match="parts is more than there are tensors"):
        split(tiny_path, tmp_path / "p", parts=1000)


def test_what_is_no_whole_model_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not a part of a model"):
        merge(tiny_path, tmp_path / "b.gguf")
    parts = split(tiny_path, tmp_path / "p", parts=3)
    Path(parts.outputs[2]).unlink()
    for call in (merge, lambda path: split(path, parts=2)):
        with pytest.raises(ModelFileError, match="1 part is missing"):
            call(parts.output)
    projector = tiny_projector().write(tmp_path / "mmproj.gguf")
    with pytest.raises(ModelFileError, match="is a projector"):
        split(projector, parts=2)
    other = tiny_model()
    other.keys["general.architecture"] = Value("llama", STR)
    with pytest.raises(ModelFileError, match="is not a Llama 4 model"):
        split(other.write(tmp_path / "o.gguf"), parts=2)


def test_a_model_that_was_converted_in_parts_is_merged(
    scout_checkpoint: Path, tmp_path: Path
) -> None:
    whole = convert(scout_checkpoint, tmp_path / "whole.gguf", vision=False)
    parts = convert(scout_checkpoint, tmp_path / "p.gguf", vision=False, split_size=1_000_000)
    report = merge(parts.output, tmp_path / "b.gguf")
    assert Path(report.output).read_bytes() == Path(whole.output).read_bytes()


# --- the commands


@pytest.fixture
def llama4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command in a directory of its own."""
    from click.testing import CliRunner

    from llama4_edge.cli import main

    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *words: runner.invoke(main, [str(word) for word in words])


def test_the_commands_do_the_same_in_this_directory(
    llama4: Command, tiny_path: Path, tmp_path: Path
) -> None:
    assert "tiny-00002-of-00002.gguf" in llama4("split", tiny_path, "--parts", "2").stdout
    result = llama4("merge", "tiny-00002-of-00002.gguf", "--json")
    assert '"output": "tiny.gguf"' in result.stdout
    assert (tmp_path / "tiny.gguf").read_bytes() == tiny_path.read_bytes()
    assert "exists" in the_error(llama4("merge", "tiny-00001-of-00002.gguf"))
    assert llama4("split", tiny_path).exit_code == 2
    assert "fits into one part" in the_error(llama4("split", tiny_path, "--size", "1G"))
    small = llama4("convert", "tiny.gguf", "--recipe", "q4_0", "-o", "small.gguf")
    assert small.exit_code == 0
    again = llama4("convert", "small.gguf", "--recipe", "q8_0", "-o", "again.gguf")
    assert "--requantize" in the_error(again)
    forced = llama4("convert", "small.gguf", "--recipe", "q8_0", "-o", "a.gguf", "--requantize")
    assert "rounded a second time" in forced.stdout
