"""Command lines of llama.cpp, pasted: what they come to mean here."""

from __future__ import annotations

import click
import pytest

from llama4_edge.cli import COMMANDS, main
from llama4_edge.commands.bench import GridOptions
from llama4_edge.commands.declare import OptionsCommand, given
from llama4_edge.commands.flags import FLAG_OF, with_flags
from llama4_edge.commands.llama_cpp import FOREIGN
from llama4_edge.commands.options import EngineOptions, PlacementOptions
from llama4_edge.runtime.settings import LoadMode


def command_named(name: str) -> OptionsCommand:
    command = main.get_command(click.Context(main), name)
    assert isinstance(command, OptionsCommand)
    return command


def read(name: str, *words: str) -> dict[str, object]:
    """The values that a command line gives, by their fields; those that were not given are out."""
    command = command_named(name)
    values = command.make_context(name, list(words)).params
    return {key: value for key, value in values.items() if value not in (None, (), False)}


def refusal(name: str, *words: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        read(name, *words)
    return caught.value.format_message()


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("-c 0", {"n_ctx": "max"}),
        ("-c 128k", {"n_ctx": 131_072}),
        ("--ctx-size 10M", {"n_ctx": 10_485_760}),
        ("-c4096", {"n_ctx": 4096}),
        ("-c=4096", {"n_ctx": 4096}),
        ("-ngl all", {"n_gpu_layers": -1}),
        ("-ngl auto", {}),
        ("--gpu-layers 99", {"n_gpu_layers": 99}),
        ("-fa", {"flash_attention": "on"}),
        ("-fa 1", {"flash_attention": "on"}),
        ("-fa 0", {"flash_attention": "off"}),
        ("-fa auto", {"flash_attention": "auto"}),
        ("--flash-attn=off", {"flash_attention": "off"}),
        ("-ctk q8_0", {"type_k": "q8_0"}),
        ("-ctk q8_0 --cache-type-v iq4_nl", {"type_k": "q8_0", "type_v": "iq4_nl"}),
        ("-ot a=CPU,b=CUDA0", {"overrides": ((("a", "CPU"), ("b", "CUDA0")),)}),
        ("-ot blk.[0-9]{1,2}.ffn=CPU", {"overrides": ((("blk.[0-9]{1,2}.ffn", "CPU"),),)}),
        ("-ncmoe 10 -nkvo", {"n_cpu_moe": 10, "no_kv_offload": True}),
        ("-sm layer --mmap --jinja -np 1", {"load_mode": ("mmap",)}),
        ("--load-mode mmap", {"load_mode": ("mmap",)}),
        ("--no-mmap", {"load_mode": ("none",)}),
        ("-lm none", {"load_mode": ("none",)}),
        ("--mlock", {"load_mode": ("mmap+mlock",)}),
        ("--mlock --no-mmap", {"load_mode": ("mmap+mlock", "none")}),
        ("--direct-io", {"load_mode": ("dio",)}),
        ("-dio", {"load_mode": ("dio",)}),
        ("--override-kv llama4.expert_used_count=int:2", {"n_expert_used": 2}),
        ("--experts 3", {"n_expert_used": 3}),
        ("--load-mode=auto", {"load_mode": ("auto",)}),
        ("-mmp 0", {"load_mode": ("none",)}),
        ("-n -1 --predict 5", {"max_tokens": 5}),
        ("--temperature 0.5", {"temperature": 0.5}),
        ("-sys Hi", {"system": "Hi"}),
    ],
)
def test_what_people_paste_means_the_same(words: str, values: dict[str, object]) -> None:
    result = read("run", "m.gguf", *words.split(), "hi")
    assert str(result.pop("model")) == "m.gguf"
    assert result == {"prompt": "hi"} | values


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-m x", "MODEL is the first argument"),
        ("-p hi", "PROMPT is the second argument"),
        ("-sm row", "Whole layers are split among GPUs"),
        ("-sm=none", "-dev NAME"),
        ("--load-mode direct", "'direct' is not one of auto, none, mmap, mlock"),
        ("-mmp 2", "-lm MODE says how a model is loaded"),
        ("--override-kv llama4.expert_used_count=int:17", "but for --experts N"),
        ("--override-kv llama4.rope.freq_base=float:1", "The file's metadata is taken as it is"),
        ("--experts 0", "--experts"),
        ("-np 4", "`plan -np N` counts several"),
        ("-hf org/name", "llama4 pull"),
        ("--samplers top_k;top_p", "The samplers are llama.cpp's, in its order"),
        ("-md draft.gguf", "no draft model"),
        ("--spec-draft-n-max 4", "no draft model"),
        ("--mmproj-offload", "`run --image FILE` shows a picture"),
        ("--chat-template llama4", "chat template is the model's own"),
        ("-tb 8", "-t sets the threads"),
        ("--rpc host:1", "--workers"),
        ("-cnv", "llama4 chat MODEL"),
        ("-f file", "--file FILE puts a document before the prompt"),
        ("-ctx 5", "No such option: -ctx"),
        ("-ctkx q8_0", "Did you mean -ctk"),
        ("--ctx-sise 5", "Did you mean --ctx-size?"),
        ("--ctx 5", "Did you mean -c?"),
        ("--n-ctx 5", "Did you mean -c?"),
        ("--max-tokens 5", "Did you mean -n?"),
        ("--kv q8_0", "Did you mean -ctk?"),
        ("--cache-type q8_0", "Did you mean -ctk?"),
        ("--repeat 1.1", "Did you mean --repeat-penalty or --repeat-last-n?"),
        ("--parallel 4", "Model(…, n_parallel=N) answers them"),
        ("--host 0.0.0.0", "`llama4 serve MODEL` is the server"),
        ("hi there how", "Quote the prompt"),
        (
            "-ctk q8_0 -ctv f17",
            "'f17' is not one of f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl. Did",
        ),
    ],
)
def test_what_is_called_otherwise_is_named(words: str, said: str) -> None:
    assert said in refusal("run", "m.gguf", *words.split())


def test_an_output_without_its_flag_is_answered_with_the_flag() -> None:
    assert "The output is given with -o" in refusal("convert", "checkpoint", "out.gguf")


def test_no_flag_is_read_as_a_short_one_with_a_value() -> None:
    for name in COMMANDS:
        command = command_named(name)
        own = {flag for param in command.params for flag in param.opts}
        for flag in FOREIGN.keys() - own:
            if not FOREIGN[flag].takes_value:
                continue  # it is what happens anyway, or is said by an option of ours
            assert flag in refusal(name, flag, "value-that-nobody-accepts")


def test_no_flag_of_ours_is_refused() -> None:
    """A command's own options win over the table."""
    assert read("bench", "m.gguf", "-p", "0,512")["n_prompt"] == (0, 512)
    assert read("bench", "m.gguf", "-fa", "0,1")["flash_attention"] == ("off", "on")
    assert read("bench", "m.gguf", "-ngl", "0,all")["n_gpu_layers"] == (0, -1)
    assert read("worker", "--host", "0.0.0.0")["host"] == "0.0.0.0"
    assert read("plan", "scout", "-np", "4", "--ctx", "max") == {
        "model": "scout",
        "n_parallel": 4,
        "n_ctx": "max",
    }


def test_a_prompt_that_begins_with_a_dash_goes_after_two() -> None:
    assert read("run", "m.gguf", "--", "- item")["prompt"] == "- item"
    assert "goes after --: run MODEL -- " in refusal("run", "m.gguf", "- write a list")
    assert "goes after --" in refusal("run", "m.gguf", "-item")


def test_zero_is_a_value_and_not_the_absence_of_one() -> None:
    assert given(EngineOptions(n_threads=0)) == {"n_threads": 0}
    assert PlacementOptions(n_gpu_layers=0).settings()["placement"].n_gpu_layers == 0
    assert PlacementOptions(devices=()).settings() == {"devices": ()}
    assert PlacementOptions().settings() == {}
    assert given(GridOptions(n_prompt=(0,))) == {"n_prompt": (0,)}


def test_what_is_not_said_of_keys_or_values_is_f16_as_in_llama_cpp() -> None:
    from llama4_edge.commands.options import CacheOptions

    assert CacheOptions().settings() == {}
    assert CacheOptions(type_k="q8_0").settings() == {"kv_type": ("q8_0", "f16")}
    assert CacheOptions(type_v="q8_0").settings() == {"kv_type": ("f16", "q8_0")}
    both = CacheOptions(type_k="q8_0", type_v="q4_0")
    assert both.settings() == {"kv_type": ("q8_0", "q4_0")}


def test_one_load_mode_counts() -> None:
    def settings(*modes: LoadMode) -> dict[str, object]:
        return EngineOptions(load_mode=modes).settings()

    assert settings() == {}
    assert settings("dio") == settings("dio", "dio") == {"load_mode": "dio"}
    # --mlock --no-mmap of older releases
    assert settings("mmap+mlock", "none") == {"load_mode": "mlock"}
    with pytest.raises(click.UsageError, match="-lm is mmap and dio: give one of them"):
        settings("mmap", "dio")


def test_every_flag_behind_a_setting_is_one_of_a_command() -> None:
    flags = {
        flag for name in COMMANDS for param in command_named(name).params for flag in param.opts
    }
    assert set(FLAG_OF.values()) <= flags


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("n_ctx is too small", "n_ctx (-c) is too small"),
        ("give a smaller n_ctx.", "give a smaller n_ctx (-c)."),
        ("n_gpu_layers=0 leaves", "n_gpu_layers=0 (-ngl 0) leaves"),
        ('give n_ctx="max" for all', 'give n_ctx="max" (-c max) for all'),
        ("force=True replaces it", "force=True (--force) replaces it"),
        ("use force to open", "use force to open"),
        ("n_ctx (-c) is named", "n_ctx (-c) is named"),
        ("n_ctx_train and my_n_ctx", "n_ctx_train and my_n_ctx"),
    ],
)
def test_errors_name_the_flag_of_a_setting(text: str, shown: str) -> None:
    assert with_flags(text) == shown


def test_a_context_shift_is_what_happens_when_the_context_is_full() -> None:
    assert read("chat", "m.gguf", "--context-shift") == {"model": "m.gguf", "when_full": "drop"}
    assert read("chat", "m.gguf", "--no-context-shift")["when_full"] == "stop"
    assert read("run", "m.gguf", "hi", "--context-shift")["when_full"] == "drop"
    assert read("bench", "m.gguf", "--no-context-shift") == {"model": "m.gguf"}
    for name, flag in (("bench", "--context-shift"), ("chat", "--keep")):
        assert "--when-full drop goes on without" in refusal(name, "m.gguf", flag)
