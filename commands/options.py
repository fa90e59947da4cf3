"""The groups of options that several commands share, each declared once.

Promises that every field bears the name of the library's setting, or is turned into settings here,
and that every default shown is the one which the library declares. Does not know what the commands
do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from . import values
from .declare import flag, given, group, option, usage_error, usage_errors
from .text_options import devices_option, threads_option, workers_option

if TYPE_CHECKING:
    from ..runtime.placement import Placement
    from ..runtime.sampling import Sampling
    from ..runtime.settings import FlashAttention, KVType, LoadMode


def default_context() -> str:
    """The context where none was asked for."""
    from ..runtime.settings import DEFAULT_CONTEXT

    return f"{DEFAULT_CONTEXT}, or the model's trained context if that is shorter"


def revision_option() -> Any:
    """The revision of a repository on the hub."""
    return option(
        "--revision",
        kind=str,
        metavar="REV",
        help="Branch, tag or commit of the repository.  [default: main]",
    )


def recipe_option(help: str) -> Any:
    """A recipe, of which int4 is the default but for checkpoints of integers."""
    return option("--recipe", kind=values.recipe_name, metavar="NAME|FILE", help=help)


def type_option() -> Any:
    """Types for single tensors, instead of the recipe's."""
    return option(
        "--type",
        kind=values.type_overrides,
        metavar="'REGEX=TYPE,…'",
        multiple=True,
        help="Type for the tensors whose name matches REGEX; the first match decides.",
    )


def experts_option() -> Any:
    """How many experts a token visits."""
    return option(
        "--experts",
        kind=values.whole_number(1),
        help="Routed experts that a token visits.  [default: as many as the model says]",
    )


def cache_ram_option() -> Any:
    """How much main memory states of sequences may take."""
    return option(
        "-cram",
        "--cache-ram",
        kind=values.mebibytes,
        metavar="MiB",
        help="Main memory for what other conversations had read, so that it is not read again; 0 "
        "keeps none, -1 is no limit.  [default: 8192, or a quarter of what is left if that is "
        "less]",
    )


def load_mode_option() -> Any:
    """How the file comes into memory; several, because older flags that stand for it differ."""
    return option(
        "-lm",
        "--load-mode",
        kind=values.load_mode,
        metavar="MODE",
        multiple=True,
        help="How weights come into main memory: auto, none (copied), mmap, mlock, mmap+mlock or "
        "dio (direct I/O).  [default: auto]",
    )


def with_load_mode(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with one `load_mode`.

    Raises:
        click.UsageError: several different ones were given.
    """
    modes = settings.pop("load_mode", ())
    if len(set(modes)) > 1:
        # As when --mlock and --no-mmap, which older releases had, are given together.
        if set(modes) != {"none", "mmap+mlock"}:
            raise usage_error(f"-lm is {' and '.join(dict.fromkeys(modes))}: give one of them")
        modes = ("mlock",)
    return {**settings, "load_mode": modes[0]} if modes else settings


@dataclass(frozen=True)
class AnswerOptions:
    """How long an answer may be."""

    max_tokens: int | None = option(
        "-n", "--n-predict", "--predict", kind=values.unless_minus_one,
        help="Tokens of an answer at most.  [default: -1, until it ends]",
    )  # fmt: skip
    stop: tuple[str, ...] = option(
        "--stop", kind=values.stop_string, metavar="TEXT", multiple=True,
        help="End the answer before TEXT; may be given several times.",
    )  # fmt: skip
    special: bool = flag(
        "-sp", "--special",
        help="Read control tokens where the prompt names them, and show them in the answer.",
    )  # fmt: skip
    drafts: bool = flag(
        "--drafts",
        help="Draft what the text has said before, and decode it at once where that is faster.",
    )  # fmt: skip


@dataclass(frozen=True)
class FormOptions:
    """What form an answer has."""

    json_schema: str | None = option(
        "-j", "--json-schema", kind=str, metavar="SCHEMA",
        help="Answer in JSON as this JSON Schema says; '{}' is any JSON.",
    )  # fmt: skip
    json_schema_file: str | None = option(
        "-jf", "--json-schema-file", kind=values.FilePath(str), metavar="FILE",
        help="The same, with the schema in FILE.",
    )  # fmt: skip
    grammar: str | None = option(
        "--grammar", kind=str, metavar="GBNF",
        help="Answer as a grammar says, in llama.cpp's GBNF.",
    )  # fmt: skip
    grammar_file: str | None = option(
        "--grammar-file", kind=values.FilePath(str), metavar="FILE",
        help="The same, with the grammar in FILE.",
    )  # fmt: skip
    regex: str | None = option(
        "--regex", kind=str, metavar="REGEX",
        help="Answer with what a regular expression matches as a whole, in Python's syntax.",
    )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """The form that was asked for, by the library's names.

        Raises:
            click.UsageError: several, a schema that is no JSON, or a file that cannot be read.
        """
        from ..chat.forms import MAX_TEXT
        from ..errors import SettingError
        from ..untrusted import Reader

        asked = given(self)
        if len(asked) > 1:
            raise usage_error(f"an answer has one form: give {' or '.join(map(_flag_of, asked))}")
        reader = Reader(SettingError, MAX_TEXT)
        with usage_errors():
            if self.json_schema is not None:
                return {"response_format": _schema(reader.parse(self.json_schema, "the schema"))}
            if self.json_schema_file is not None:
                return {"response_format": _schema(reader.json(self.json_schema_file))}
            if self.grammar_file is not None:
                return {"grammar": reader.text(self.grammar_file)}
        return asked


def _flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _schema(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "schema": schema}


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: float | None = option(
        "--temp", "--temperature", kind=float,
        help="Divides the logits; 0 always takes the likeliest token.",
    )  # fmt: skip
    top_k: int | None = option(
        "--top-k", kind=int, help="Keep the N likeliest tokens; 0 keeps all."
    )
    top_p: float | None = option(
        "--top-p", kind=float, help="Keep the likeliest tokens that together have probability N."
    )
    min_p: float | None = option(
        "--min-p", kind=float, help="Keep tokens at least N times as likely as the likeliest."
    )
    seed: int | None = option(
        "-s", "--seed", kind=values.unless_minus_one,
        help="The same seed gives the same answer.  [default: -1, a new one each time]",
    )  # fmt: skip

    repeat_penalty: float | None = option(
        "--repeat-penalty", kind=float,
        help="Divides the logits of tokens among the last N of --repeat-last-n; 1 is none.",
    )  # fmt: skip
    repeat_last_n: int | None = option(
        "--repeat-last-n", kind=int, help="How many of the last tokens the penalties look at."
    )
    frequency_penalty: float | None = option(
        "--frequency-penalty", kind=float, help="Subtracted for each time a token is among them."
    )
    presence_penalty: float | None = option(
        "--presence-penalty", kind=float, help="Subtracted where a token is among them."
    )
    dry_multiplier: float | None = option(
        "--dry-multiplier", kind=float,
        help="Of DRY's penalty for going on with a repetition; 0 is none.",
    )  # fmt: skip
    dry_base: float | None = option(
        "--dry-base", kind=float, help="To the power of the repetition's length."
    )
    dry_allowed_length: int | None = option(
        "--dry-allowed-length", kind=int, help="Tokens that may be repeated."
    )
    dry_penalty_last_n: int | None = option(
        "--dry-penalty-last-n", kind=int, help="How many of the last tokens DRY looks at."
    )
    dry_sequence_breakers: tuple[str, ...] = option(
        "--dry-sequence-breaker", kind=str, metavar="TEXT", multiple=True,
        help="No repetition goes beyond TEXT; replaces llama.cpp's four; 'none' is no text.",
    )  # fmt: skip
    top_n_sigma: float | None = option(
        "--top-n-sigma", "--top-nsigma", kind=float,
        help="Keep logits within N standard deviations of the largest; 0 keeps all.",
    )  # fmt: skip
    typical_p: float | None = option(
        "--typical", "--typical-p", kind=float,
        help="Keep the tokens of typical surprise that together have probability N.",
    )  # fmt: skip
    xtc_probability: float | None = option(
        "--xtc-probability", kind=float,
        help="How often the likeliest of several likely tokens are left out; 0 is never.",
    )  # fmt: skip
    xtc_threshold: float | None = option(
        "--xtc-threshold", kind=float, help="From which probability on a token is likely."
    )
    dynatemp_range: float | None = option(
        "--dynatemp-range", kind=float,
        help="How far the temperature follows the entropy, down and up; 0 keeps it.",
    )  # fmt: skip
    dynatemp_exponent: float | None = option("--dynatemp-exp", kind=float, help="Of the entropy.")
    mirostat: int | None = option(
        "--mirostat", kind=int, help="2 keeps the surprise near --mirostat-ent; 0 is off."
    )
    mirostat_tau: float | None = option("--mirostat-ent", kind=float, help="In bits.")
    mirostat_eta: float | None = option(
        "--mirostat-lr", kind=float, help="How fast it is corrected."
    )
    logit_bias: tuple[tuple[int, float], ...] = option(
        "-l", "--logit-bias", kind=values.logit_bias, metavar="TOKEN(+/-)BIAS", multiple=True,
        help="Add BIAS to the logit of a token's id, as in 15043+1 or 15043-1; "
        "15043-inf forbids it.",
    )  # fmt: skip

    @staticmethod
    def defaults() -> Mapping[str, object]:
        """What `Sampling` declares."""
        from ..runtime.sampling import Sampling

        return vars(Sampling())

    def sampling(self) -> Sampling:
        """The sampling that was asked for.

        Raises:
            click.UsageError: a value outside its range.
        """
        from ..runtime.sampling import Sampling

        settings = given(self)
        if settings.get("dry_sequence_breakers") == ("none",):
            settings["dry_sequence_breakers"] = ()
        with usage_errors():
            return Sampling(**settings)


@dataclass(frozen=True)
class CacheOptions:
    """What the KV cache and attention over it are."""

    type_k: KVType | None = option(
        "-ctk", "--cache-type-k", kind=values.kv_type, metavar="TYPE",
        help="Type of the keys in the KV cache: f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl; "
        "f16 where only -ctv is given.",
    )  # fmt: skip
    type_v: KVType | None = option(
        "-ctv", "--cache-type-v", kind=values.kv_type, metavar="TYPE",
        help="Type of the values in it; f16 where only -ctk is given.",
    )  # fmt: skip
    flash_attention: FlashAttention | None = option(
        "-fa", "--flash-attn", kind=values.switch, metavar="on|off|auto",
        help="Flash attention; -fa alone is on.",
    )  # fmt: skip

    @staticmethod
    def defaults() -> Mapping[str, object]:
        """What the engine's settings declare, and what is planned."""
        from ..runtime.settings import EngineSettings

        planned = "f16, or what `llama4 plan` finds that keeps attention on the GPU"
        return {"type_k": planned, "flash_attention": EngineSettings.flash_attention}

    def settings(self) -> dict[str, Any]:
        """The settings that were given, by the library's names."""
        settings = given(self)
        pair = settings.pop("type_k", None), settings.pop("type_v", None)
        return settings if pair == (None, None) else {**settings, "kv_type": kv_types(*pair)}


@dataclass(frozen=True)
class AdapterOptions:
    """What changes a model's weights while it answers."""

    adapters: tuple[tuple[str, float], ...] = option(
        "--lora", kind=values.scaled_file, metavar="FILE[=SCALE]", multiple=True,
        help="Add a LoRA adapter, a GGUF of `llama4 convert-lora`, times SCALE; may be given again."
        "  [default: =1]",
    )  # fmt: skip
    control_vectors: tuple[tuple[str, float], ...] = option(
        "--control-vector", kind=values.scaled_file, metavar="FILE[=SCALE]", multiple=True,
        help="Add a control vector to the outputs of layers, times SCALE; may be given again.",
    )  # fmt: skip
    control_vector_layers: tuple[int, int] | None = option(
        "--control-vector-layer-range", kind=values.whole_number(1), metavar="FIRST LAST", nargs=2,
        help="The layers after which control vectors are added, counted from 0.  [default: all]",
    )  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """How much a loaded model holds, and what computes."""

    n_ctx: int | Literal["max"] | None = option(
        "-c", "--ctx-size", kind=values.tokens, metavar="N|max",
        help="Tokens of context, prompt and answer together, as in 32768, 128k or 10M; max (or 0) "
        "is the longest that fits.",
    )  # fmt: skip
    n_threads: int | None = threads_option()
    n_batch: int | None = option(
        "-b", "--batch-size", kind=values.whole_number(1),
        help="Tokens of a prompt given to llama.cpp in one call.",
    )  # fmt: skip
    n_ubatch: int | None = option(
        "-ub", "--ubatch-size", kind=values.whole_number(1),
        help="Tokens of a prompt computed at once.",
    )  # fmt: skip

    n_expert_used: int | None = experts_option()
    load_mode: tuple[LoadMode, ...] = load_mode_option()
    cache_ram: int | None = cache_ram_option()

    cache: CacheOptions = group(CacheOptions)
    adapters: AdapterOptions = group(AdapterOptions)

    @staticmethod
    def defaults() -> Mapping[str, object]:
        """What the engine's settings declare."""
        from ..runtime.settings import EngineSettings

        declared = {name: getattr(EngineSettings, name) for name in ("n_batch", "n_ubatch")}
        return {**declared, "n_ctx": default_context()}

    def settings(self) -> dict[str, Any]:
        """The settings that were given, by the library's names.

        Raises:
            click.UsageError: several load modes.
        """
        return {**with_load_mode(given(self)), **self.cache.settings(), **given(self.adapters)}


@dataclass(frozen=True)
class DeviceOptions:
    """Where a model goes, but for how many of its layers and experts."""

    devices: tuple[str, ...] | None = devices_option()
    tensor_split: tuple[float, ...] | None = option(
        "-ts", "--tensor-split", kind=values.shares, metavar="N,N",
        help="Share of the layers for each GPU.  [default: in proportion to free memory]",
    )  # fmt: skip
    overrides: tuple[tuple[tuple[str, str], ...], ...] = option(
        "-ot", "--override-tensor", kind=values.tensor_overrides, metavar="'REGEX=DEVICE,…'",
        multiple=True,
        help="Put the tensors whose name matches REGEX on DEVICE, such as CPU or CUDA0; the first "
        "match decides.",
    )  # fmt: skip
    no_kv_offload: bool = flag("-nkvo", "--no-kv-offload", help="Keep the KV cache on the CPU.")
    workers: tuple[str, ...] | None = workers_option()


@dataclass(frozen=True)
class LayerOptions:
    """How many layers and experts go to GPUs."""

    n_gpu_layers: int | None = option(
        "-ngl", "--n-gpu-layers", "--gpu-layers", kind=values.layers_or_auto, metavar="N|all|auto",
        help="Layers on GPUs, counted from the last one.",
    )  # fmt: skip
    cpu_moe: bool = flag("-cmoe", "--cpu-moe", help="Keep all experts on the CPU.")
    n_cpu_moe: int | None = option(
        "-ncmoe", "--n-cpu-moe", kind=values.whole_number(0, 1024),
        help="Keep the experts of the first N layers on the CPU.",
    )  # fmt: skip

    @staticmethod
    def defaults() -> Mapping[str, object]:
        """What a placement declares, unless it is planned."""
        return {"n_gpu_layers": "auto, as `llama4 plan` says"}


@dataclass(frozen=True)
class PlacementOptions(DeviceOptions, LayerOptions):
    """Where a model goes."""

    def settings(self) -> dict[str, Any]:
        """`placement`, or else `devices`, and `workers`, as `Model` and `plan` take them.

        Raises:
            click.UsageError: a value outside its range.
        """
        return {**placed(self, self), **given_workers(self)}


def kv_types(type_k: KVType | None, type_v: KVType | None) -> tuple[KVType, KVType]:
    """The types of keys and values; what is not given is f16, as in llama.cpp's tools."""
    from ..runtime.settings import EngineSettings

    usual = EngineSettings()
    return type_k or usual.type_k, type_v or usual.type_v


def placed(where: DeviceOptions, layers: LayerOptions) -> dict[str, Any]:
    """`placement` where options place the model by hand; `devices` where they only choose those.

    Raises:
        click.UsageError: a value outside its range.
    """
    by_hand = (
        where.tensor_split is not None
        or where.overrides
        or where.no_kv_offload
        or layers.n_gpu_layers is not None
        or layers.cpu_moe
        or layers.n_cpu_moe is not None
    )
    placement = _placement(where, layers)
    if by_hand:
        return {"placement": placement}
    return {} if placement.devices is None else {"devices": placement.devices}


def _placement(where: DeviceOptions, layers: LayerOptions) -> Placement:
    """All that was asked for; ``-ot`` decides before what keeps experts on the CPU."""
    from ..runtime.placement import Placement, cpu_moe_overrides

    settings: dict[str, Any] = {"devices": where.devices, "offload_kqv": not where.no_kv_offload}
    if where.tensor_split is not None:
        settings["tensor_split"] = where.tensor_split
    if layers.n_gpu_layers is not None:
        settings["n_gpu_layers"] = layers.n_gpu_layers
    with usage_errors():
        experts = cpu_moe_overrides(None if layers.cpu_moe else layers.n_cpu_moe or 0)
        return Placement(overrides=values.flattened(where.overrides) + experts, **settings)


def given_workers(where: DeviceOptions) -> dict[str, Any]:
    """`workers`, if there are any."""
    return {} if where.workers is None else {"workers": where.workers}
