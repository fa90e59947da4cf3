"""The `llama4` command: what it accepts, what it prints where, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf import GGUFWriter

from llama4_edge import Model, Sampling, __version__, convert
from llama4_edge.cli import main
from llama4_edge.quant import RECIPES
from llama4_edge.runtime.files.gguf_file import read_gguf

Command = Callable[..., Result]


@pytest.fixture
def llama4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    """Runs the command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("llama4_edge")
    level, handlers = logger.level, logger.handlers

    def run(*arguments: object, stdin: str | bytes = b"") -> Result:
        return CliRunner().invoke(
            main, [str(one) for one in arguments], input=stdin, catch_exceptions=False
        )

    yield run
    logger.setLevel(level)
    logger.handlers = handlers


@pytest.fixture(scope="session")
def model(make_gguf: Callable[..., Path], scout_checkpoint: Path) -> Path:
    return make_gguf(scout_checkpoint)


def the_error(result: Result, exit_code: int = 1) -> str:
    """The one line of error that `result` consists of."""
    assert (result.exit_code, result.stdout) == (exit_code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# --- help and usage


def test_the_bare_command_shows_its_help(llama4: Command) -> None:
    result = llama4()
    assert result.exit_code == 0
    assert result.stdout == llama4("--help").stdout
    commands = result.stdout.split("Commands:\n")[1].split("\n")
    assert [line.split()[0] for line in commands if line] == [
        "convert",
        "pull",
        "inspect",
        "plan",
        "run",
        "chat",
        "bench",
        "worker",
        "doctor",
    ]
    assert "..." not in "".join(commands)


def test_the_version_is_the_packages(llama4: Command) -> None:
    assert llama4("--version").stdout == f"llama4, version {__version__}\n"


@pytest.mark.parametrize("name", main.commands)
def test_every_commands_help_holds_examples(llama4: Command, name: str) -> None:
    result = llama4(name, "--help")
    assert result.exit_code == 0
    assert f"  llama4 {name} " in result.stdout or f"  llama4 {name}\n" in result.stdout


def test_help_lists_every_recipe_with_what_it_is(llama4: Command) -> None:
    lines = [" ".join(line.split()) for line in llama4("convert", "--help").stdout.splitlines()]
    for recipe in RECIPES.values():
        assert f"{recipe.name} {recipe.summary}" in lines


@pytest.mark.parametrize("name", ["run", "chat"])
def test_help_shows_the_defaults_that_the_runtime_declares(llama4: Command, name: str) -> None:
    text = " ".join(llama4(name, "--help").stdout.split())
    defaults = Sampling()
    for option, value in [
        ("--temp", defaults.temperature),
        ("--top-k", defaults.top_k),
        ("--top-p", defaults.top_p),
        ("--min-p", defaults.min_p),
    ]:
        assert f"[default: {value}]" in text[text.index(f"{option} N") :].split(" --")[0]


def test_run_and_chat_take_the_same_options_as_llama_cpp(llama4: Command) -> None:
    flags = {"-n", "--temp", "--top-k", "--top-p", "--min-p", "-s", "-sys", "-c", "-t", "-b", "-ub",
             "-ngl", "--n-predict", "--seed", "--system", "--ctx-size", "--threads", "--batch-size",
             "--ubatch-size", "--n-gpu-layers", "--stop", "-fa", "--flash-attn", "-dev", "--device",
             "-ts", "--tensor-split", "-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe",
             "--n-cpu-moe", "-nkvo", "--no-kv-offload"}  # fmt: skip
    for name in ("run", "chat"):
        command = main.commands[name]
        taken = {flag for param in command.params for flag in param.opts if flag.startswith("-")}
        assert flags <= taken
    assert isinstance(main.commands["run"].params[0], click.Argument)


def test_help_does_not_load_llama_cpp() -> None:
    code = (
        "import sys\n"
        "from llama4_edge.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "assert 'llama_cpp' not in sys.modules, 'llama_cpp was imported'\n"
        "assert 'rich' not in sys.modules, 'rich was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["convert", "x", "--type", "ffn_down"], "'ffn_down' is not REGEX=TYPE"),
        (["convert", "x", "--type", "=q4_k"], "'=q4_k' is not REGEX=TYPE"),
        (["convert", "x", "--type", "ffn="], "'ffn=' is not REGEX=TYPE"),
        (["convert", "x", "--recipe", "int3"], "'int3' is not one of int4, int8"),
        (["convert", "x", "--threads", "0"], "'--threads'"),
        (["convert"], "Missing argument 'SOURCE'"),
        (["inspect"], "Missing argument 'FILE'"),
        (["run", "x"], "the prompt is empty"),
        (["run", "x", ""], "the prompt is empty"),
        (["run", "x", "-"], "the prompt is empty"),
        (["run", "x", " \n"], "the prompt is empty"),
        (["run", "x", "hi", "--raw", "--system", "y"], "--raw has no place for --system"),
        (["run", "x", "hi", "--temp", "-1"], "found -1.0, expected a number from 0.0 up"),
        (["run", "x", "hi", "--top-p", "1.5"], "top_p is outside its range"),
        (["run", "x", "hi", "--top-k", "-1"], "top_k is outside its range"),
        (["run", "x", "hi", "--seed", "-2"], "'-2' is not a whole number from -1 up"),
        (["run", "x", "hi", "--seed", "4294967295"], "seed is outside its range"),
        (["run", "x", "hi", "-c", "0"], "'0' is not a whole number from 1 to 2147483647"),
        (["run", "x", "hi", "-ub", "many"], "'many' is not a whole number"),
        (["run", "x", "hi", "-ngl", "-2"], "'-2' is not a whole number from -1"),
        (["run", "x", "hi", "-ot", "exps"], "'exps' is not REGEX=DEVICE"),
        (["run", "x", "hi", "-ot", "(?i)exps=CPU"], "not one that llama.cpp reads as it is meant"),
        (["run", "x", "hi", "-ts", "1,one"], "'1,one' is not a list of numbers"),
        (["run", "x", "hi", "-ts", "0,0"], "tensor_split leaves every device without layers"),
        (["run", "x", "hi", "-dev", "CUDA0,CUDA0"], "a device is named twice, found CUDA0"),
        (["run", "x", "hi", "--kv", "q2"], "'q2' is not one of"),
        (["run", "x", "hi", "-ncmoe", "-1"], "'-1' is not a whole number from 0 to 1024"),
        (["worker", "--port", "65536"], "'65536' is not a whole number from 1 to 65535"),
        (["run", "x", "hi", "--stop", ""], "the empty text would end every answer"),
        (["chat", "x", "--min-p", "1"], "min_p is outside its range"),
        (["talk"], "No such command 'talk'"),
        (["--jsn"], "No such option"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(
    llama4: Command, arguments: list[str], complaint: str
) -> None:
    result = llama4(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


# --- convert and inspect


def test_convert_reports_each_role_and_writes_the_file(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    result = llama4("convert", scout_checkpoint, "-o", "scout.gguf", "--recipe", "INT8")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    experts = next(line for line in lines if line[:1] == ["expert"])
    assert experts[-2:] == ["8.50", "Q8_0"]
    assert lines[-1] == ["wrote", "scout.gguf"]
    size = (tmp_path / "scout.gguf").stat().st_size
    assert f"{size / 1024**2:.1f} MiB, from" in result.stdout


def test_a_dry_run_says_the_same_and_writes_nothing(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    result = llama4("convert", scout_checkpoint, "--dry-run")
    assert result.stdout.splitlines()[-1].split() == [
        "would",
        "write",
        f"{scout_checkpoint.name}-int4.gguf",
    ]
    assert "MiB/s" not in result.stdout
    assert list(tmp_path.glob("*.gguf")) == []


def test_the_first_type_that_matches_decides(llama4: Command, scout_checkpoint: Path) -> None:
    result = llama4(
        "convert", scout_checkpoint, "--dry-run", "--json",
        "--type", r"blk\.[01]\.ffn_down_exps=q6_k", "--type", "_exps=q4_0",
    )  # fmt: skip
    report = json.loads(result.stdout)
    (expert,) = (role for role in report["roles"] if role["role"] == "expert")
    assert expert["types"] == {"Q6_K": 2, "Q4_0": 10}
    assert report["dry_run"] is True


def test_an_existing_output_is_kept_without_force(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "kept.gguf"
    target.write_text("mine")
    assert "kept.gguf" in the_error(llama4("convert", scout_checkpoint, "-o", target))
    assert target.read_text() == "mine"
    assert llama4("convert", scout_checkpoint, "-o", target, "--force").exit_code == 0
    assert target.read_bytes()[:4] == b"GGUF"


def test_with_json_an_error_is_json_too(llama4: Command) -> None:
    for command in ("convert", "inspect"):
        result = llama4(command, "absent", "--json")
        assert (result.exit_code, result.stderr) == (1, "")
        record = json.loads(result.stdout)
        assert list(record) == ["error", "problem", "found", "expected", "hint"]
        assert "absent" in record["problem"]


def test_inspect_shows_a_gguf_and_its_tensors(llama4: Command, model: Path) -> None:
    text = llama4("inspect", model).stdout
    assert text.startswith(f"{model}\n")
    assert "blk.0" not in text
    assert "tokenizer.ggml.tokens" in text
    assert "1,024 values" in text
    assert all(line == line.rstrip() for line in text.splitlines())
    tensors = llama4("inspect", model, "--tensors").stdout.splitlines()
    row = next(line.split() for line in tensors if line.startswith("blk.0.ffn_down_exps.weight"))
    # hidden 256, 16 experts of 256: rows of the down projection are as wide as an expert.
    assert row[1:3] == ["BF16", "16x256x256"]


def test_a_gguf_and_its_checkpoint_hold_the_same_parameters(
    llama4: Command, model: Path, scout_checkpoint: Path
) -> None:
    gguf, checkpoint = (
        json.loads(llama4("inspect", path, "--json").stdout) for path in (model, scout_checkpoint)
    )
    assert (gguf["kind"], checkpoint["kind"]) == ("gguf", "checkpoint")
    assert list(gguf) == list(checkpoint)
    shapes = [
        {one["name"]: one["shape"] for one in summary["tensors"] if one["role"] not in without}
        for summary, without in ((gguf, {"rope"}), (checkpoint, {"other"}))
    ]
    assert shapes[0] == shapes[1]
    assert gguf["expert_bits_per_weight"] == checkpoint["expert_bits_per_weight"] == 16.0


def test_one_file_of_a_checkpoint_is_sent_to_its_directory(
    llama4: Command, scout_checkpoint: Path
) -> None:
    shard = next(scout_checkpoint.glob("*.safetensors"))
    assert f"llama4 inspect {scout_checkpoint}" in the_error(llama4("inspect", shard))


def test_inspect_check_reads_all_of_a_sound_gguf(llama4: Command, model: Path) -> None:
    result = llama4("inspect", model, "--check")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(llama4("inspect", model).stdout)
    assert result.stdout.splitlines()[-1] == "ok      every tensor was read, and holds numbers"
    assert json.loads(llama4("inspect", model, "--check", "--json").stdout)["damage"] == []


def test_inspect_check_says_a_line_for_each_damage(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    tensors = read_gguf(model).tensors
    keys, norm = (
        next(one for one in tensors if one.name == name)
        for name in ("blk.0.attn_k.weight", "blk.1.attn_norm.weight")
    )
    last = max(tensors, key=lambda one: one.offset)
    data = bytearray(model.read_bytes())
    data[keys.offset + 10 : keys.offset + 12] = b"\xc0\x7f"
    data[norm.offset : norm.offset + norm.nbytes] = bytes(norm.nbytes)
    end = last.offset + last.nbytes - 100
    damaged.write_bytes(data[:end])
    result = llama4("inspect", damaged, "--check")
    assert (result.exit_code, result.stderr) == (1, "")
    lines = {
        f"problem {keys.name} at byte {keys.offset + 10} of {damaged}: "
        "1 number is infinite or no number",
        f"note    {norm.name} at byte {norm.offset} of {damaged}: "
        f"all {norm.nbytes:,} bytes are zero",
        f"problem {last.name} at byte {end} of {damaged}: 100 of {last.nbytes:,} bytes are missing",
    }
    assert set(result.stdout.splitlines()[-3:]) == lines
    record = json.loads(llama4("inspect", damaged, "--check", "--json").stdout)
    assert {(one["tensor"], one["certain"]) for one in record["damage"]} == {
        (keys.name, True),
        (norm.name, False),
        (last.name, True),
    }


def test_inspect_check_warns_of_zeros_and_still_succeeds(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    """A tensor may be zero; nothing of it is certainly wrong."""
    norm = next(one for one in read_gguf(model).tensors if one.name == "output_norm.weight")
    data = bytearray(model.read_bytes())
    data[norm.offset : norm.offset + norm.nbytes] = bytes(norm.nbytes)
    (tmp_path / "zero.gguf").write_bytes(data)
    result = llama4("inspect", "zero.gguf", "--check")
    assert result.exit_code == 0
    assert "note    output_norm.weight at byte" in result.stdout


def test_inspect_check_reads_every_part(
    llama4: Command, scout_checkpoint: Path, tmp_path: Path
) -> None:
    report = convert(scout_checkpoint, tmp_path / "parts.gguf", split_size=4_000_000)
    parts = [Path(name) for name in report.outputs]
    assert len(parts) == 3
    assert llama4("inspect", parts[1], "--check").exit_code == 0
    parts[1].unlink()
    os.truncate(parts[2], 5)
    record = json.loads(llama4("inspect", parts[0], "--check", "--json").stdout)
    assert [(one["tensor"], one["file"]) for one in record["damage"]] == [
        (None, str(parts[1])),
        (None, str(parts[2])),
    ]
    said = [one["what"] for one in record["damage"]]
    assert "No such file" in said[0]
    assert "is truncated" in said[1]


@pytest.mark.parametrize(
    ("architecture", "exit_code"), [("llama4", 0), ("clip", 0), ("qwen3", 1), ("", 1)]
)
def test_inspect_shows_llama_4_and_its_projector_and_nothing_else(
    llama4: Command, tmp_path: Path, architecture: str, exit_code: int
) -> None:
    writer = GGUFWriter(tmp_path / "one.gguf", architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for command in (["inspect"], ["inspect", "--check"]):
        result = llama4(*command, "one.gguf")
        assert result.exit_code == exit_code
        assert ("is not a Llama 4 model" in result.stderr) is bool(exit_code)


def test_inspect_check_is_for_a_gguf(llama4: Command, scout_checkpoint: Path) -> None:
    result = llama4("inspect", scout_checkpoint, "--check")
    assert result.exit_code == 2
    assert "--check reads a GGUF" in result.stderr


@pytest.mark.parametrize("command", [["inspect"], ["run", "-n", "1", "--temp", "0"], ["chat"]])
def test_a_truncated_gguf_is_one_line_of_error(
    llama4: Command, model: Path, tmp_path: Path, command: list[str]
) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[:-1000])
    arguments = [*command, short, "hi"] if command[0] == "run" else [*command, short]
    assert "short.gguf" in the_error(llama4(*arguments))


# --- run


def greedy(model: Path, prompt: str, tokens: int, *, raw: bool = False, system: str = "") -> str:
    """What the API answers at temperature 0."""
    with Model(model) as loaded:
        if raw:
            return loaded.generate(
                prompt, max_tokens=tokens, sampling=Sampling(temperature=0.0)
            ).text
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        return loaded.chat(messages, max_tokens=tokens, sampling=Sampling(temperature=0.0)).text


RUN = ("-n", 8, "--temp", 0)


def test_run_prints_the_answer_and_nothing_else(llama4: Command, model: Path) -> None:
    result = llama4("run", model, "Hello", *RUN)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == greedy(model, "Hello", 8).rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["Hello"], b"\n", "Hello"),
        ([], b"Hello\n", "Hello"),
        (["-"], b"Hello", "Hello"),
        (["Hello"], b"a document\n", "Hello\n\na document"),
    ],
)
def test_the_prompt_is_the_argument_and_what_is_piped(
    llama4: Command, model: Path, arguments: list[str], stdin: bytes, prompt: str
) -> None:
    result = llama4("run", model, *arguments, *RUN, stdin=stdin)
    assert result.stdout == greedy(model, prompt, 8).rstrip("\n") + "\n"


def test_raw_continues_the_text_and_system_comes_first(llama4: Command, model: Path) -> None:
    raw = llama4("run", model, "Once upon", "--raw", *RUN)
    assert raw.stdout == greedy(model, "Once upon", 8, raw=True).rstrip("\n") + "\n"
    system = llama4("run", model, "Hello", "-sys", "Be brief.", *RUN)
    assert system.stdout == greedy(model, "Hello", 8, system="Be brief.").rstrip("\n") + "\n"


def test_the_same_seed_says_the_same_and_another_does_not(llama4: Command, model: Path) -> None:
    first, again, other = (
        llama4("run", model, "Hello", "-n", 12, "-s", seed).stdout for seed in (7, 7, 8)
    )
    assert first == again != other


def test_an_answer_ends_before_a_stop_string(llama4: Command, model: Path) -> None:
    whole = greedy(model, "Hello", 8)
    stop = whole[3:5]
    result = llama4("run", model, "Hello", *RUN, "--stop", "never said", "--stop", stop)
    assert result.stdout == whole[: whole.index(stop)].rstrip("\n") + "\n"


def test_verbose_adds_the_log_and_timings_on_stderr_only(llama4: Command, model: Path) -> None:
    quiet = llama4("run", model, "Hello", *RUN)
    for arguments in (["run", model, "Hello", *RUN, "-v"], ["-v", "run", model, "Hello", *RUN]):
        loud = llama4(*arguments)
        assert loud.stdout == quiet.stdout
        assert "llama_model_loader" in loud.stderr
        assert loud.stderr.splitlines()[-1].endswith("tokens/s")


def test_every_command_that_takes_verbose_has_a_log_to_show(llama4: Command) -> None:
    """Converting logs nothing; what a backend says as it starts is for `doctor -v`."""
    takes = {
        name
        for name, command in main.commands.items()
        if any("--verbose" in param.opts for param in command.params)
    }
    assert takes == {"plan", "run", "chat", "bench", "worker", "doctor"}
    llama4("doctor", "-v")
    assert logging.getLogger("llama4_edge").level == logging.INFO


def test_a_prompt_that_does_not_fit_names_the_option_that_helps(
    llama4: Command, model: Path
) -> None:
    error = the_error(llama4("run", model, "Hello " * 50, "-c", 32))
    assert "do not fit into the context" in error
    assert "-c" in error
    assert "n_ctx" not in error


def test_an_answer_that_the_context_cuts_off_says_so(llama4: Command, model: Path) -> None:
    result = llama4("run", model, "Hello", "--temp", 0, "-c", 32)
    assert result.exit_code == 0
    assert result.stdout == greedy(model, "Hello", 100)[: len(result.stdout) - 1] + "\n"
    assert "the context is full" in result.stderr


def test_a_prompt_that_is_not_utf8_is_one_line_of_error(llama4: Command, model: Path) -> None:
    error = the_error(llama4("run", model, stdin=b"caf\xe9"))
    assert "standard input is not UTF-8, found byte 0xe9 at offset 3" in error


# --- chat from a pipe


def test_a_piped_chat_answers_each_line_and_obeys_commands(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    lines = f"Hello\n/undo\n//Hello\n/save {tmp_path}/talk.json\n/quit\nnever read\n"
    result = llama4("chat", model, *RUN, stdin=lines)
    assert result.exit_code == 0
    answers = [greedy(model, prompt, 8).rstrip("\n") for prompt in ("Hello", "/Hello")]
    assert result.stdout == "\n".join(answers) + "\n"
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [one["role"] for one in saved["messages"]] == ["user", "assistant"]
    assert saved["sampling"]["temperature"] == 0.0


def test_a_piped_chat_goes_on_after_an_error_and_ends_with_1(llama4: Command, model: Path) -> None:
    result = llama4("chat", model, *RUN, "-c", 64, stdin="/load absent\n" + "x " * 99 + "\nHello\n")
    assert result.exit_code == 1
    assert result.stdout == greedy(model, "Hello", 8).rstrip("\n") + "\n"
    absent, full = result.stderr.splitlines()
    assert absent.startswith("error: absent")
    assert "do not fit into the context" in full
    assert "/reset" in full


def test_a_chat_remembers_what_was_said(llama4: Command, model: Path) -> None:
    result = llama4("chat", model, *RUN, "--system", "Be brief.", stdin="Hello\nAgain\n")
    with Model(model) as loaded:
        messages = [{"role": "system", "content": "Be brief."}]
        answers = []
        for text in ("Hello", "Again"):
            messages.append({"role": "user", "content": text})
            answers.append(
                loaded.chat(messages, max_tokens=8, sampling=Sampling(temperature=0.0)).text
            )
            messages.append({"role": "assistant", "content": answers[-1]})
    assert result.stdout == "".join(answer.rstrip("\n") + "\n" for answer in answers)


# --- doctor


def test_doctor_names_the_library_and_each_device(llama4: Command) -> None:
    record = json.loads(llama4("doctor", "--json").stdout)
    result = llama4("doctor")
    assert result.exit_code == (0 if record["healthy"] else 1)
    assert record["library"]["llama_cpp"] in result.stdout
    for device in record["devices"]:
        assert device["description"] in result.stdout
    for finding in record["findings"]:
        assert finding["what"] in result.stdout
        assert finding["fix"] is None or f"  {finding['fix']}\n" in result.stdout


def test_doctor_exits_with_1_when_something_is_broken(
    llama4: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama4_edge.runtime import doctor

    broken = doctor.Finding("problem", "[red]nothing[/red] works", "make it work")
    monkeypatch.setattr(doctor, "gpu_findings", lambda *_: (broken,))
    result = llama4("doctor")
    assert result.exit_code == 1
    assert "problem [red]nothing[/red] works\n  make it work\n" in result.stdout


# --- errors that are nobody's plan


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(28, "No space", "out.gguf"), "cannot use out.gguf, found No space"),
        (PermissionError(13, "Permission denied", b"a/b"), "cannot use a/b, found Permission den"),
    ],
)
def test_memory_that_runs_out_and_files_that_cannot_be_used_are_one_line(
    llama4: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    assert said in the_error(failing(llama4, monkeypatch, error))


def test_a_name_that_is_too_long_is_one_line_of_error(llama4: Command) -> None:
    for arguments in (["inspect"], ["inspect", "--check"], ["run", "-n", "1"], ["chat"]):
        prompt = ["Hello"] if arguments[0] == "run" else []
        assert "File name too long" in the_error(llama4(*arguments, "x" * 300, *prompt))


def test_an_error_that_nobody_expected_is_not_swallowed(
    llama4: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (KeyError("bug"), OSError(5, "Input/output error")):
        with pytest.raises(type(error)):
            failing(llama4, monkeypatch, error)


def failing(llama4: Command, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Result:
    from llama4_edge.runtime import doctor

    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "doctor", fail)
    return llama4("doctor")
