"""The `llama4` command as a whole: its help, what it refuses, and how it ends."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import Result

from llama4_edge import Sampling, __version__
from llama4_edge.cli import COMMANDS, main
from llama4_edge.commands.flags import with_flags
from llama4_edge.quant import RECIPES
from llama4_edge.terminal.console import complain, note, show_log
from llama4_edge.terminal.visible import one_line
from tests.command_line import Command, the_error


def command_named(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def test_the_bare_command_shows_its_help(llama4: Command) -> None:
    result = llama4()
    assert result.exit_code == 0
    assert result.stdout == llama4("--help").stdout
    commands = result.stdout.split("Commands:\n")[1].split("\n")
    assert [line.split()[0] for line in commands if line] == [
        "convert",
        "convert-lora",
        "pull",
        "split",
        "merge",
        "inspect",
        "plan",
        "run",
        "chat",
        "serve",
        "calibrate",
        "compare",
        "bench",
        "worker",
        "doctor",
    ]
    assert "..." not in "".join(commands)


def test_the_version_is_the_packages(llama4: Command) -> None:
    assert llama4("--version").stdout == f"llama4, version {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_holds_examples(llama4: Command, name: str) -> None:
    result = llama4(name, "--help")
    assert result.exit_code == 0
    assert f"  llama4 {name} " in result.stdout or f"  llama4 {name}\n" in result.stdout


@pytest.mark.parametrize(("name", "help"), COMMANDS.items())
def test_the_list_of_commands_says_what_each_commands_help_begins_with(
    name: str, help: str
) -> None:
    assert (command_named(name).help or "").startswith(f"{help}\n")


def test_help_lists_every_recipe_with_what_it_is(llama4: Command) -> None:
    lines = [" ".join(line.split()) for line in llama4("convert", "--help").stdout.splitlines()]
    for recipe in RECIPES.values():
        assert f"{recipe.name} {recipe.summary}" in lines


@pytest.mark.parametrize("name", ["run", "chat"])
def test_help_shows_the_defaults_that_the_runtime_declares(llama4: Command, name: str) -> None:
    text = " ".join(llama4(name, "--help").stdout.split("Options:")[1].split())
    defaults = Sampling()
    for option, value in [
        ("--temp", defaults.temperature),
        ("--top-k", defaults.top_k),
        ("--top-p", defaults.top_p),
        ("--min-p", defaults.min_p),
    ]:
        help = re.search(rf" {option}[^[]*\[default: ([^]]*)\]", text)
        assert help is not None
        assert help[1] == str(value)


def test_run_and_chat_take_the_same_options_as_llama_cpp(llama4: Command) -> None:
    flags = {"-n", "--temp", "--top-k", "--top-p", "--min-p", "-s", "-sys", "-c", "-t", "-b", "-ub",
             "-ngl", "--n-predict", "--seed", "--system", "--ctx-size", "--threads", "--batch-size",
             "--ubatch-size", "--n-gpu-layers", "--stop", "-fa", "--flash-attn", "-dev", "--device",
             "-ts", "--tensor-split", "-ot", "--override-tensor", "-cmoe", "--cpu-moe", "-ncmoe",
             "--n-cpu-moe", "-nkvo", "--no-kv-offload"}  # fmt: skip
    for name in ("run", "chat"):
        command = command_named(name)
        taken = {flag for param in command.params for flag in param.opts if flag.startswith("-")}
        assert flags <= taken
    assert isinstance(command_named("run").params[0], click.Argument)


def test_help_does_not_load_llama_cpp() -> None:
    code = (
        "import sys\n"
        "from llama4_edge.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "loaded = {'llama_cpp', 'rich', 'llama4_edge.commands.run'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["convert", "x", "--type", "ffn_down"], "'ffn_down' is not REGEX=TYPE"),
        (["convert", "x", "--type", "=q4_k"], "'=q4_k' is not REGEX=TYPE"),
        (["convert", "x", "--type", "ffn="], "'ffn=' is not REGEX=TYPE"),
        (["convert", "x", "--recipe", "int5"], "'int5' is not one of int4, int3, int8"),
        (["convert", "x", "--recipe", "mine"], "keep, nor a recipe file"),
        (["convert", "x", "--threads", "0"], "'--threads'"),
        (["convert"], "Missing argument 'SOURCE'"),
        (["inspect"], "Missing argument 'FILE'"),
        (["run", "x"], "the prompt is empty"),
        (["run", "x", ""], "the prompt is empty"),
        (["run", "x", "-"], "the prompt is empty"),
        (["run", "x", " \n"], "the prompt is empty"),
        (["run", "x", "hi", "--raw", "--system", "y"], "--raw has no place for --system"),
        (["run", "x", "hi", "--temp", "-1"], "found -1.0, expected a number from 0.0 up"),
        (["run", "x", "hi", "--top-p", "1.5"], "top_p (--top-p) is outside its range"),
        (["run", "x", "hi", "--top-k", "-1"], "top_k (--top-k) is outside its range"),
        (["run", "x", "hi", "--seed", "-2"], "'-2' is not a whole number from -1 up"),
        (["run", "x", "hi", "--seed", "4294967295"], "seed is outside its range"),
        (["run", "x", "hi", "-ub", "many"], "'many' is not a whole number"),
        (["run", "x", "hi", "-ngl", "-2"], "'-2' is not a whole number from -1"),
        (["run", "x", "hi", "-ot", "exps"], "'exps' is not REGEX=DEVICE"),
        (
            ["run", "x", "hi", "-ot", "(?i)exps=CPU"],
            "not in the syntax that llama.cpp and Python share",
        ),
        (["run", "x", "hi", "-ts", "1,one"], "'1,one' is not a list of numbers"),
        (["run", "x", "hi", "-ts", "0,0"], "tensor_split (-ts) leaves every device without layers"),
        (["run", "x", "hi", "-dev", "CUDA0,CUDA0"], "a device is named twice, found CUDA0"),
        (["run", "x", "hi", "-ctk", "q2"], "'q2' is not one of"),
        (["run", "x", "hi", "-ncmoe", "-1"], "'-1' is not a whole number from 0 to 1024"),
        (["worker", "--port", "65536"], "'65536' is not a whole number from 0 to 65535"),
        (["run", "x", "hi", "--stop", ""], "the empty text would end every answer"),
        (["chat", "x", "--min-p", "1"], "min_p (--min-p) is outside its range"),
        (["convert", "x", "-o", ""], "'-o' / '--output': the name is empty"),
        (["plan", "--table", "--plot", ""], "'--plot': the name is empty"),
        (["talk"], "No such command 'talk'"),
        (["help"], "No such command 'help'. Did you mean --help?"),
        (["download"], "No such command 'download'. Did you mean pull?"),
        (["--jsn"], "No such option"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(
    llama4: Command, arguments: list[str], complaint: str
) -> None:
    result = llama4(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr


def test_with_json_an_error_is_json_too(llama4: Command) -> None:
    for command in ("convert", "inspect"):
        result = llama4(command, "absent", "--json")
        assert (result.exit_code, result.stderr) == (1, "")
        record = json.loads(result.stdout)
        assert list(record) == ["error", "problem", "found", "expected", "hint"]
        assert "absent" in record["problem"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["convert", "--json"], "Missing argument 'SOURCE'."),
        (["plan", "x", "--json", "--bogus"], "No such option: --bogus."),
        (["plan", "x", "-ub", "abc", "--json"], "'abc' is not a whole number from 1 up"),
        (["bench", "--json"], "give either a MODEL or --synthetic MODEL"),
        (["inspect", "x", "--json", "-c"], "No such option: -c"),
        (["doctor", "more", "--json"], "unexpected extra argument (more)"),
        (["pull", "x", "--json"], "'x' is not org/name"),
    ],
)
def test_with_json_a_command_line_that_makes_no_sense_is_json_too(
    llama4: Command, arguments: list[str], problem: str
) -> None:
    result = llama4(*arguments)
    assert (result.exit_code, result.stderr) == (2, "")
    record = json.loads(result.stdout)
    assert record["error"] == "UsageError"
    assert problem in record["problem"]


def test_a_stop_string_that_no_answer_could_hold_is_refused(llama4: Command) -> None:
    result = llama4("run", "x", "hi", "--stop", "\udcff")
    assert result.exit_code == 2
    assert "it is not UTF-8, and no answer could hold it" in result.stderr


def test_a_usage_error_says_how_the_command_is_used_and_then_one_line(llama4: Command) -> None:
    result = llama4("run", "x", "-c")
    assert result.stderr.splitlines() == [
        "Usage: llama4 run [OPTIONS] MODEL [PROMPT] [-]".replace("llama4", "main"),
        "Try 'main run --help'.",
        "",
        "error: Option '-c' requires an argument.",
    ]


@pytest.mark.parametrize("word", ["onn", "yes", "2", "of", ""])
def test_a_wrong_value_of_flash_attention_names_the_flag_and_its_choices(
    llama4: Command, word: str
) -> None:
    for arguments in (["run", "x", "hi", "-fa", word], ["bench", "x", "--flash-attn", word]):
        result = llama4(*arguments)
        assert result.exit_code == 2
        assert "'-fa' / '--flash-attn'" in result.stderr
        assert f"{word!r} is not one of on, off, auto" in result.stderr


def test_a_flag_in_an_error_takes_no_full_stop_of_the_sentence() -> None:
    assert with_flags("Give n_ctx=4096.") == "Give n_ctx=4096 (-c 4096)."
    assert with_flags("or projector=FILE.") == "or projector=FILE (--mmproj FILE)."
    assert with_flags("without a projector") == "without a projector"
    pair = "kv_type=('q8_0', 'f16')"
    assert with_flags(f"Give {pair}.") == f"Give {pair} (-ctk q8_0 -ctv f16)."
    assert with_flags("temperature=0.7.") == "temperature=0.7 (--temp 0.7)."
    assert with_flags("Name it: projector=FILE") == "Name it: projector=FILE (--mmproj FILE)"


def test_a_module_that_does_not_load_is_one_line(
    llama4: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("long\nOriginal error was: libx.so: failed to map", name="numpy")

    monkeypatch.setattr("llama4_edge.inspection.inspect", fail)
    assert the_error(llama4("inspect", "/")) == (
        "error: the module numpy cannot be loaded, found libx.so: failed to map. Install "
        "llama4-edge again, or give it more memory: ulimit -v shows a limit."
    )


def test_notes_errors_and_warnings_are_one_visible_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "a\x1b[2J\x9b31m\nerror: b\u202e\u200b\u2028"
    show_log(verbose=False, shown=str)
    for say in (note, complain, logging.getLogger("llama4_edge").warning):
        say(name)
        (line,) = capsys.readouterr().err.split("\n")[:-1]
        assert "␛[2J" in line
        assert one_line(line) == line
    complain("x" * 2**22 + ". Do that.")
    line = capsys.readouterr().err
    assert len(line) < 4000
    assert line.endswith(". Do that.\n")


def test_no_text_in_json_can_steer_a_terminal(llama4: Command) -> None:
    name = "a\x9b31mb\u202ec\x7f"
    result = llama4("inspect", name, "--json")
    assert "a\\u009b31mb\\u202ec\\u007f" in result.stdout
    assert name in json.loads(result.stdout)["problem"]


@pytest.mark.parametrize("command", [["inspect"], ["run", "-n", "1", "--temp", "0"], ["chat"]])
def test_a_truncated_gguf_is_one_line_of_error(
    llama4: Command, model: Path, tmp_path: Path, command: list[str]
) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[:-1000])
    arguments = [*command, short, "hi"] if command[0] == "run" else [*command, short]
    assert "short.gguf" in the_error(llama4(*arguments))


def test_every_command_that_takes_verbose_has_a_log_to_show(llama4: Command) -> None:
    """Converting logs nothing; what a backend says as it starts is for `doctor -v`."""
    takes = {
        name
        for name in COMMANDS
        if any("--verbose" in param.opts for param in command_named(name).params)
    }
    assert takes == {
        "plan",
        "run",
        "chat",
        "serve",
        "calibrate",
        "compare",
        "bench",
        "worker",
        "doctor",
    }
    llama4("doctor", "-v")
    assert logging.getLogger("llama4_edge").level == logging.INFO


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
