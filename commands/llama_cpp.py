"""The flags of llama.cpp's tools: what they are called here, or why they are not.

Promises that a flag which people paste from a llama.cpp command line does what it does there, or is
refused with ours beside it; that none is read as a short option with a value behind it (``-ctk`` is
not ``-c tk``). Does not know what the options do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from ..errors import did_you_mean
from .flags import FLAG_OF

# What llama.cpp takes for on, off and auto; a bare -fa was "on" until 2025.
_SWITCH = {
    **dict.fromkeys(("on", "enabled", "true", "1"), "on"),
    **dict.fromkeys(("off", "disabled", "false", "0"), "off"),
    **dict.fromkeys(("auto", "-1"), "auto"),
}
_FLASH_ATTENTION = ("-fa", "--flash-attn")

# What else people call a setting of ours.
_OTHER_NAMES = {
    **dict.fromkeys(("context", "context_size", "context_length", "ctx"), "-c"),
    **dict.fromkeys(("kv", "kv_cache_type", "cache_type"), "-ctk"),
    **dict.fromkeys(("gpu", "gpus", "devices"), "-dev"),
    **dict.fromkeys(("document", "documents", "files"), "--file"),
    **dict.fromkeys(("max_new_tokens", "n_tokens"), "-n"),
    "ubatch": "-ub",
}

_NUMBER = re.compile(r"-?\d[\d.,]*[kKmMgG]?")


@dataclass(frozen=True)
class Foreign:
    """A flag of llama.cpp that is not one of ours.

    Args:
        instead: what to do here, as a sentence; ``{command}`` is the command that was given.
        accepted: the values with which it asks for what happens here anyway; "" is no value.
        ours: values for which there is an option here, and that option with its own value.
    """

    instead: str
    accepted: tuple[str, ...] = ()
    ours: tuple[tuple[str, str], ...] = ()

    @property
    def takes_value(self) -> bool:
        """Whether the next word is its value."""
        return "" not in self.accepted and "" not in dict(self.ours)


_SAMPLERS = "The samplers are llama.cpp's, in its order; each has its own flag here too."
_SPECULATIVE = "There is no draft model here; --drafts drafts what the text has said before."
_SERVER = "`llama4 serve MODEL` is the server; its --help says what it takes."
_PICTURES = "`run --image FILE` shows a picture; `plan --image-size WxH` keeps room for one."
_PROJECTOR = "The vision tower beside the model is loaded when a picture comes."
_TEMPLATE = "The chat template is the model's own; `run --raw` goes without one."
_SHIFT = (
    "Where the context is full, an answer ends; --when-full drop goes on without the oldest "
    "exchanges, and keeps the system message and the documents of --file."
)
_ROPE = "RoPE is set as the model file says, and not changed."
_CACHE = "The KV cache is managed here: pruned for the chunked layers, kept between messages."
_CORES = "Threads are not pinned here; taskset -c CORES llama4 … pins them."
_MAPPED = "-lm MODE says how a model is loaded: auto, none, mmap, mlock, mmap+mlock or dio."
_EXPERTS = "llama4.expert_used_count=int:{}"
_GRAMMAR = "`llama4 run` answers in the form of a JSON Schema, a grammar or a regular expression."
_ADAPTER = "An adapter with its scale is --lora FILE=SCALE; 0 loads it and adds nothing."
_VECTOR = "A control vector with its scale is --control-vector FILE=SCALE."
_NO_ADAPTER = "run, chat, serve, plan and bench take adapters."
_LOG = "llama.cpp's log is on stderr with -v, and silent without."
_FIT = "`llama4 plan MODEL` fits the model to the memory, and run, chat and bench follow it."
_HUB = "Fetch the file first: llama4 pull ORG/NAME [QUANTIZATION]."
_PROMPT_CACHE = "--session FILE keeps what was said, and what was read of it."
_ONE_ANSWER = (
    "`run` and `chat` hold one conversation; `plan -np N` counts several, and in Python "
    "Model(…, n_parallel=N) answers them at the same time."
)
_TABLE = (
    (("-m", "--model"), Foreign("MODEL is the first argument: {command} MODEL.")),
    (("-p", "--prompt"), Foreign("PROMPT is the second argument: llama4 run MODEL PROMPT.")),
    (
        ("-f", "-bf", "--binary-file"),
        Foreign(
            "--file FILE puts a document before the prompt; llama4 run MODEL < FILE makes it the "
            "prompt."
        ),
    ),
    (
        ("-sysf", "--system-prompt-file"),
        Foreign('Give its text: -sys "$(cat FILE)".'),
    ),
    (
        ("-r", "--reverse-prompt"),
        Foreign("--stop TEXT ends the answer before TEXT."),
    ),
    (("-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first"),
     Foreign("llama4 chat MODEL is the conversation.")),
    (("-no-cnv", "--no-conversation"),
     Foreign("llama4 run MODEL PROMPT answers once; --raw goes without chat template.")),
    (("-st", "--single-turn"), Foreign("llama4 run MODEL PROMPT answers once.")),
    (("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr",
      "--docker-repo"), Foreign(_HUB)),
    (("-hft", "--hf-token"), Foreign("Set the environment variable HF_TOKEN.")),
    (("--offline",), Foreign("Only `pull`, `convert` and `plan` of a repository use the network.")),
    (("-sm", "--split-mode"),
     Foreign("Whole layers are split among GPUs here; one GPU alone is -dev NAME.", ("layer",))),
    (("-mg", "--main-gpu"), Foreign("Name the GPUs to use with -dev; the first one leads.")),
    (("--list-devices",), Foreign("`llama4 doctor` lists the devices.")),
    (("--rpc", "-rpc"), Foreign("Other machines are given with --workers HOST:PORT,….")),
    (("--mmap",), Foreign(_MAPPED, ours=(("", "-lm mmap"),))),
    (("--no-mmap",), Foreign(_MAPPED, ours=(("", "-lm none"),))),
    (("-mmp",), Foreign(_MAPPED, ours=(("1", "-lm mmap"), ("0", "-lm none")))),
    (("--mlock",), Foreign(_MAPPED, ours=(("", "-lm mmap+mlock"),))),
    (("-dio", "--direct-io"), Foreign(_MAPPED, ours=(("", "-lm dio"),))),
    (("-ndio", "--no-direct-io"), Foreign(_MAPPED, ("",))),
    (("--jinja",), Foreign(_TEMPLATE, ("",))),
    (("--no-jinja", "--chat-template", "--chat-template-file", "--chat-template-kwargs"),
     Foreign(_TEMPLATE)),
    (("-kvo", "--kv-offload"),
     Foreign("The KV cache lies with its layers unless -nkvo is given.", ("",))),
    (("-np", "--parallel", "-ns", "--sequences"), Foreign(_ONE_ANSWER, ("1",))),
    (("-cb", "--cont-batching", "-nocb", "--no-cont-batching"), Foreign(_ONE_ANSWER)),
    (("--no-warmup", "--warmup"), Foreign("The model is not warmed up before an answer here.")),
    (("--repack", "-nr", "--no-repack"),
     Foreign("Weights are repacked for the CPU wherever that is safe; `llama4 doctor` says.")),
    (("--context-shift",), Foreign(_SHIFT, ours=(("", "--when-full drop"),))),
    (("--no-context-shift",), Foreign(_SHIFT, ("",), (("", "--when-full stop"),))),
    (("--keep",), Foreign(_SHIFT)),
    (("-tb", "--threads-batch"), Foreign("-t sets the threads of prompts and answers alike.")),
    (("-e", "--escape"), Foreign("Escapes are the shell's: $'two\\nlines'.")),
    (("--no-escape",), Foreign("Escapes are not processed here.", ("",))),
    (("--no-display-prompt",), Foreign("The prompt is not repeated here.", ("",))),
    (("--display-prompt", "--verbose-prompt"), Foreign("The prompt is not repeated here.")),
    (("-co", "--color"), Foreign("Colour is used where the terminal has it.")),
    (("--simple-io", "-mli", "--multiline-input"),
     Foreign("Alt-Enter, or a backslash at the end of a line, begins a new line in the chat.")),
    (("--ignore-eos",), Foreign("An answer ends where the model ends it.")),
    (("--verbosity", "-lv", "--log-verbosity", "--log-verbose", "--log-disable", "--log-file",
      "--log-colors", "--log-prefix", "--log-timestamps", "--perf", "--no-perf", "--show-timings",
      "--no-show-timings"), Foreign(_LOG)),
    (("-fit", "--fit", "-fitp", "--fit-print", "-fitt", "--fit-target", "-fitc", "--fit-ctx"),
     Foreign(_FIT)),
    (("--check-tensors",), Foreign("`llama4 inspect MODEL --check` reads all tensors.")),
    (("--override-kv",),
     Foreign("The file's metadata is taken as it is, but for --experts N; convert it anew.",
             ours=tuple((_EXPERTS.format(n), f"--experts {n}") for n in range(1, 17)))),
    (("-ncffn", "--n-cpu-ffn"), Foreign("-ncmoe N, or -ot 'REGEX=CPU', keeps weights on the CPU.")),
    (("--samplers", "--sampler-seq", "--sampling-seq", "--adaptive-target", "--adaptive-decay",
      "-bs", "--backend-sampling"), Foreign(_SAMPLERS)),
    (("--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file"),
     Foreign(_GRAMMAR)),
    (("--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale",
      "--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor", "--yarn-beta-slow",
      "--yarn-beta-fast", "-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"), Foreign(_ROPE)),
    (("--swa-full", "-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", "-cms",
      "--checkpoint-min-step", "-kvu", "--kv-unified", "-no-kvu",
      "--no-kv-unified", "--cache-prompt", "--no-cache-prompt", "--cache-reuse", "-dt",
      "--defrag-thold"), Foreign(_CACHE)),
    (("-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict", "--prio", "--poll", "-Cb",
      "--cpu-mask-batch", "-Crb", "--cpu-range-batch", "--cpu-strict-batch", "--prio-batch",
      "--poll-batch", "--numa"), Foreign(_CORES)),
    (("--lora-scaled", "--lora-init-without-apply"), Foreign(_ADAPTER)),
    (("--control-vector-scaled",), Foreign(_VECTOR)),
    (("--lora", "--control-vector", "--control-vector-layer-range"), Foreign(_NO_ADAPTER)),
    (("-mmu", "--mmproj-url"), Foreign("-mm FILE names the vision tower's file.")),
    (("--mmproj-auto", "--no-mmproj", "--no-mmproj-auto"), Foreign(_PROJECTOR, ("",))),
    (("-md", "--model-draft", "--draft", "--draft-n", "--draft-max", "--draft-min", "-ngld",
      "--gpu-layers-draft", "-devd", "--device-draft", "-lcs", "-lcd"), Foreign(_SPECULATIVE)),
    (("--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro"), Foreign(_PROMPT_CACHE)),
    (("--host", "--port", "--api-key", "-a", "--alias", "--metrics", "--slots", "--no-webui",
      "--webui", "--embedding", "--embeddings", "--rerank", "--reranking"), Foreign(_SERVER)),
    (("--reasoning-format", "-rea", "--reasoning", "--reasoning-budget", "--reasoning-effort"),
     Foreign("Llama 4 does not reason before it answers.")),
    # llama-bench and llama-quantize
    (("-o", "-oe", "--output-err"), Foreign("--json writes JSON to stdout.")),
    (("--delay", "--progress", "-embd", "-nopo", "--no-op-offload", "--op-offload", "--no-host"),
     Foreign("This is not measured or changed here.")),
    (("--imatrix",), Foreign("Recipes need no importance matrix here.")),
    (("--outtype", "--outfile"), Foreign("--recipe NAME names the types, -o FILE the output.")),
    (("--tensor-type",), Foreign("--type 'REGEX=TYPE' sets the type of tensors.")),
    (("--split-max-size",), Foreign("--split-size N(M|G) writes parts.")),
    (("--split-max-tensors",), Foreign("Parts are split by size here: --split-size N(M|G).")),
)  # fmt: skip

FOREIGN = {name: foreign for names, foreign in _TABLE for name in names}
# Families of flags, where no name above fits.
_FAMILIES = tuple(
    (re.compile(pattern), Foreign(instead))
    for pattern, instead in (
        (r"--spec-.*|--draft-.*|--.*-draft|-(td|tbd|Cd|Crd|Cbd|Crbd|otd|hfd|hfrd|ctkd|ctvd|cmoed"
         r"|ncmoed)|--(mtp|eagle3|dflash|lookup-cache-.*)", _SPECULATIVE),
        (r"--(no-)?mmproj.*|-mmdev|--(image|audio|video|mtmd)(-.*)?", _PICTURES),
        (r"--(no-)?(ui|webui|cors|models|slots?|props|prefill|agent|tools|mcp|ssl|api|path|media"
         r"|threads-http|timeout|sse|reuse-port|sleep-idle|tags)(-.*)?|-(to|sps|ag|no-ag)",
         _SERVER),
        (r"--(no-)?log(-.*)?", _LOG),
        (r"--in-(prefix|suffix).*|--(no-)?skip-chat-parsing", _TEMPLATE),
        (r"--(no-)?(cache(?!-type)|kv-unified)-.*", _CACHE),
    )
)  # fmt: skip


def foreign_flag(name: str) -> Foreign | None:
    """What is known here of a flag of llama.cpp that is not ours; None where it is not known."""
    if name in FOREIGN:
        return FOREIGN[name]
    return next((foreign for pattern, foreign in _FAMILIES if pattern.fullmatch(name)), None)


def normalized(
    ctx: click.Context, command: click.Command, arguments: Sequence[str]
) -> Iterator[str]:
    """The command line as click reads it, with llama.cpp's ways to say the same translated.

    Raises:
        click.UsageError: an option that `command` has not; says what to give instead.
    """
    options = {
        name: param
        for param in command.get_params(ctx)
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield word
            yield from rest
            return
        name, assigned, value = word.partition("=")
        option = options.get(word) or (options.get(name) if assigned else None)
        if not word.startswith("-") or word == "-":
            yield word
        elif option is None:
            yield from _unknown(ctx, word, rest, options)
        elif option.is_flag or option.count:
            yield word
        elif name in _FLASH_ATTENTION:
            if not assigned:
                value = rest.pop(0) if rest and _meant_as_switch(rest[0]) else "on"
            yield from (name, _switches(value) or value)
        elif assigned and not word.startswith("--"):
            yield from (name, value)  # click splits only long options at "="
        else:
            yield word
            for _ in range(option.nargs - bool(assigned)):
                if rest:
                    yield rest.pop(0)


def _switches(value: str) -> str | None:
    """llama.cpp's words for on, off and auto, with commas between several, as ours."""
    words = [_SWITCH.get(word) for word in value.lower().split(",")]
    return None if None in words else ",".join(filter(None, words))


def _meant_as_switch(word: str) -> bool:
    """Whether the word after a bare -fa is a value of it: on, and also ``onn``, ``yes`` and 2."""
    return (
        _switches(word) is not None
        or _NUMBER.fullmatch(word) is not None
        or word.lower() in ("", "yes", "no", "none")
        or did_you_mean(word, _SWITCH) is not None
    )


def _unknown(
    ctx: click.Context, word: str, rest: list[str], options: dict[str, click.Option]
) -> Iterator[str]:
    """What stands for a word that is none of the command's options: often nothing."""
    short, value = word[:2], word[2:]
    if short in options and _NUMBER.fullmatch(value) and not options[short].is_flag:
        yield from (short, value)  # -c4096
        return
    name, assigned, value = word.partition("=")
    foreign = foreign_flag(name)
    if foreign is None:
        raise click.UsageError(_no_such_option(ctx, word, name, options), ctx)
    if not assigned and foreign.takes_value and rest:
        value = rest[0]
    ours = dict(foreign.ours).get(value, "").split()
    if ours and ours[0] in options:
        yield from ours
    elif value not in foreign.accepted:
        raise click.UsageError(
            f"{name} is an option of llama.cpp that `{ctx.command_path}` does not take. "
            f"{foreign.instead.replace('{command}', ctx.command_path)}",
            ctx,
        )
    if not assigned and foreign.takes_value:
        rest.pop(0)


def _no_such_option(
    ctx: click.Context, word: str, name: str, options: dict[str, click.Option]
) -> str:
    if any(mark in word for mark in " \n"):
        shown = word if len(word) <= 40 else word[:39] + "…"
        return (
            f"{shown!r} begins with a dash and is not an option. A prompt that does goes after --: "
            f"{ctx.command_path} MODEL -- '-…'"
        )
    hints = [_called_otherwise(name, options) or did_you_mean(name, options)]
    if not name.startswith("--") and any(param.name == "prompt" for param in ctx.command.params):
        hints.append("A prompt that begins with a dash goes after --.")
    return " ".join(filter(None, [f"No such option: {name}.", *hints]))


def _called_otherwise(name: str, options: dict[str, click.Option]) -> str | None:
    """The option for a setting's name in Python, or the options that begin with `name`."""
    setting = name.lstrip("-").replace("-", "_")
    flag = _OTHER_NAMES.get(setting) or FLAG_OF.get(setting)
    if flag in options:
        return f"Did you mean {flag}?"
    longer = [option for option in options if option.startswith(f"{name}-")]
    if not name.startswith("--") or not longer:
        return None
    *others, last = longer[:3]
    return f"Did you mean {', '.join(others)} or {last}?" if others else f"Did you mean {last}?"
