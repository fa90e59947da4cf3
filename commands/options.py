"""The options that several commands share, declared once, and how their help is shown.

Promises that an option that was not given is not handed on, so that every default is the one the
room behind it declares, and that help shows that one. Does not know what the commands do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from ..errors import SettingError

if TYPE_CHECKING:
    from ..runtime.placement import Placement
    from ..runtime.sampling import Sampling

Command = TypeVar("Command", bound=Callable[..., Any])
# Keys of click's context.meta, which a command shares with the group it is in.
JSON, VERBOSE = "llama4_edge.json", "llama4_edge.verbose"
MODEL, SAMPLING, ANSWER = "llama4_edge.model", "llama4_edge.sampling", "llama4_edge.answer"
PLACEMENT, WORKER = "llama4_edge.placement", "llama4_edge.worker"


def byte_count(value: str) -> int:
    """A number of bytes as gguf-split takes it: ``500M`` or ``40G``, in powers of ten."""
    units = {"M": 10**6, "G": 10**9}
    digits, unit = value[:-1], value[-1:].upper()
    if unit not in units or not digits.isdecimal() or int(digits) == 0:
        raise click.BadParameter(f"{value!r} is not a number with M or G, such as 40G")
    return int(digits) * units[unit]


def type_override(value: str) -> tuple[str, str]:
    """``REGEX=TYPE`` taken apart. The regex may hold ``=`` itself, a type's name never does."""
    pattern, _, type_name = value.rpartition("=")
    if not (pattern and type_name):
        raise click.BadParameter(f"{value!r} is not REGEX=TYPE, as in 'ffn_down_exps=q6_k'")
    return pattern, type_name


def tensor_override(value: str) -> tuple[str, str]:
    """``REGEX=DEVICE`` taken apart. The regex may hold ``=`` itself, a device's name never does."""
    pattern, _, device = value.rpartition("=")
    if not (pattern and device):
        raise click.BadParameter(f"{value!r} is not REGEX=DEVICE, as in 'ffn_.*_exps=CPU'")
    return pattern, device


def _list(value: str) -> tuple[str, ...]:
    return tuple(value.split(","))


def _devices(value: str) -> tuple[str, ...]:
    """Names with commas between them; llama.cpp's word for the CPU alone is "none"."""
    return () if value == "none" else _list(value)


def _shares(value: str) -> tuple[float, ...]:
    """Numbers with commas between them, or slashes, as llama.cpp takes them."""
    try:
        return tuple(float(one) for one in value.replace("/", ",").split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, as in 3,1") from None


def recipe_name(value: str) -> str:
    """The name of a recipe, looked up when it is needed: recipes load ggml's types."""
    from ..quant import RECIPES

    if value.lower() not in RECIPES:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(RECIPES)}")
    return value.lower()


def _stop_string(value: str) -> str:
    if not value:
        raise click.BadParameter("the empty text would end every answer at once")
    return value


def whole_number_from(least: int, largest: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` to `largest`."""

    def whole_number(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if number < least or (largest is not None and number > largest):
            most = "up" if largest is None else f"to {largest}"
            raise click.BadParameter(f"{value!r} is not a whole number from {least} {most}")
        return number

    return whole_number


def _unless_minus_one(value: str) -> int | None:
    """A whole number; llama.cpp's -1 stands for what happens without the option."""
    number = whole_number_from(-1)(value)
    return None if number == -1 else number


class CommandWithRecipes(click.Command):
    """A command whose help ends with the recipes, a line each."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, then the recipes."""
        from ..quant import RECIPES

        super().format_options(ctx, formatter)
        with formatter.section("Recipes"):
            formatter.write_dl([(recipe.name, recipe.summary) for recipe in RECIPES.values()])


class Gathered(click.Option):
    """An option that is kept with its group in ``context.meta`` when it was given."""

    group: ClassVar[str]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's help, with the default that the room behind it declares."""
        record = super().get_help_record(ctx)
        default = self.declared().get(self.name or "")
        if record is None or default in (None, ()):
            return record
        return record[0], f"{record[1]}  [default: {default}]"

    @staticmethod
    def declared() -> dict[str, Any]:
        """The defaults of the group's options, by name."""
        return {}


class _ModelOption(Gathered):
    group = MODEL

    @staticmethod
    def declared() -> dict[str, Any]:
        """What `Model` says."""
        from ..model import Model
        from ..runtime.settings import DEFAULT_CONTEXT

        context = f"{DEFAULT_CONTEXT}, or what the model was trained for if that is less"
        return {**_parameter_defaults(Model), "n_ctx": context}


class _SamplingOption(Gathered):
    group = SAMPLING

    @staticmethod
    def declared() -> dict[str, Any]:
        """What `Sampling` says."""
        from ..runtime.sampling import Sampling

        return _parameter_defaults(Sampling)


class _PlacementOption(Gathered):
    group = PLACEMENT

    @staticmethod
    def declared() -> dict[str, Any]:
        """What `Placement` says."""
        from ..runtime.placement import Placement

        return {"n_gpu_layers": Placement.n_gpu_layers}


class _WorkerOption(Gathered):
    group = WORKER

    @staticmethod
    def declared() -> dict[str, Any]:
        """What `running_worker` says."""
        from ..runtime.workers.worker import running_worker

        return _parameter_defaults(running_worker)


class _AnswerOption(Gathered):
    group = ANSWER


def _parameter_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(function).parameters.items()}


def _gather(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    assert isinstance(param, Gathered)
    # Nothing, or no value of an option that may be given several times.
    if value is not None and not (param.multiple and value == ()):
        ctx.meta.setdefault(param.group, {})[param.name] = value


def option(
    cls: type[Gathered],
    *names: str,
    kind: Any,
    help: str,
    metavar: str = "N",
    multiple: bool = False,
) -> Callable[[Command], Command]:
    """An option with a value, kept with the group that `cls` names."""
    return click.option(
        *names,
        cls=cls,
        type=kind,
        help=help,
        metavar=metavar,
        multiple=multiple,
        expose_value=False,
        callback=_gather,
    )


def flag(cls: type[Gathered], *names: str, value: bool, help: str) -> Callable[[Command], Command]:
    """An option that stands for a value by being there."""
    return click.option(
        *names,
        cls=cls,
        is_flag=True,
        flag_value=value,
        default=None,
        help=help,
        expose_value=False,
        callback=_gather,
    )


# What llama.cpp's int32_t can hold.
LARGEST = 2**31 - 1
_COUNT = whole_number_from(1, LARGEST)

# Where a model goes, besides how many layers and experts: `bench` takes several numbers for those.
_PLACING = (
    option(
        _PlacementOption, "-dev", "--device", "devices", kind=_devices, metavar="NAMES",
        help="GPUs to use, with commas between them; none is the CPU alone.  [default: all]",
    ),
    option(
        _PlacementOption, "-ts", "--tensor-split", "tensor_split", kind=_shares, metavar="N,N",
        help="The share of the layers of each GPU.  [default: as their free memory]",
    ),
    option(
        _PlacementOption, "-ot", "--override-tensor", "overrides", kind=tensor_override,
        metavar="'REGEX=DEVICE'", multiple=True,
        help="Put the tensors whose name REGEX finds on DEVICE, such as CPU or CUDA0; the first "
        "that does, decides.",
    ),
    flag(
        _PlacementOption, "-nkvo", "--no-kv-offload", "offload_kqv", value=False,
        help="Keep the KV cache on the CPU.",
    ),
    option(
        _ModelOption, "--workers", kind=_list, metavar="HOST:PORT,…",
        help="Other machines that run `llama4 worker`, to share the model with.",
    ),
)  # fmt: skip

# How many layers and experts.
_LAYERS = (
    option(
        _PlacementOption, "-ngl", "--n-gpu-layers", "n_gpu_layers",
        kind=whole_number_from(-1, LARGEST),
        help="Layers put on GPUs, from the last one on; -1 is all.",
    ),
    flag(
        _PlacementOption, "-cmoe", "--cpu-moe", "cpu_moe", value=True,
        help="Keep all experts on the CPU.",
    ),
    option(
        _PlacementOption, "-ncmoe", "--n-cpu-moe", "n_cpu_moe", kind=whole_number_from(0, 1024),
        help="Keep the experts of the first N layers on the CPU.",
    ),
)  # fmt: skip

# Named as in llama.cpp, in the order of the help.
_SHARED = (
    option(
        _AnswerOption,
        "-n",
        "--n-predict",
        "max_tokens",
        kind=_unless_minus_one,
        help="Tokens of an answer at most.  [default: -1, until it ends]",
    ),
    option(
        _SamplingOption,
        "--temp",
        "temperature",
        kind=float,
        help="Divides the logits; 0 always takes the likeliest token.",
    ),
    option(_SamplingOption, "--top-k", kind=int, help="Keep the N likeliest tokens; 0 keeps all."),
    option(
        _SamplingOption,
        "--top-p",
        kind=float,
        help="Keep the likeliest tokens that together have probability N.",
    ),
    option(
        _SamplingOption,
        "--min-p",
        kind=float,
        help="Keep tokens at least N times as likely as the likeliest.",
    ),
    option(
        _SamplingOption,
        "-s",
        "--seed",
        kind=_unless_minus_one,
        help="The same seed gives the same answer.  [default: -1, a new one each time]",
    ),
    option(
        _AnswerOption,
        "--stop",
        kind=_stop_string,
        metavar="TEXT",
        multiple=True,
        help="End the answer before TEXT; may be given several times.",
    ),
    option(
        _ModelOption, "-c", "--ctx-size", "n_ctx", kind=_COUNT,
        help="Tokens that prompt and answer have room for.",
    ),
    option(
        _ModelOption, "-t", "--threads", "n_threads", kind=_COUNT,
        help="CPU threads.  [default: one for each core]",
    ),
    option(
        _ModelOption, "-b", "--batch-size", "n_batch", kind=_COUNT,
        help="Tokens of a prompt handed over at once.",
    ),
    option(
        _ModelOption, "-ub", "--ubatch-size", "n_ubatch", kind=_COUNT,
        help="Tokens of a prompt computed at once.",
    ),
    option(
        _ModelOption, "--kv", "kv_type", kind=click.Choice(["f16", "q8_0", "q4_0"]), metavar="TYPE",
        help="What the KV cache is kept as: f16, q8_0 or q4_0.",
    ),
    option(
        _ModelOption, "-fa", "--flash-attn", "flash_attention",
        kind=click.Choice(["on", "off", "auto"]), metavar="on|off|auto", help="Flash attention.",
    ),
    *_LAYERS,
    *_PLACING,
)  # fmt: skip


_OF_A_WORKER = (
    option(
        _WorkerOption, "-H", "--host", kind=str, metavar="ADDRESS",
        help="The address of this machine that it listens on; 0.0.0.0 is all of them.",
    ),
    option(
        _WorkerOption, "-p", "--port", kind=whole_number_from(1, 65535), metavar="PORT",
        help="Where it listens.",
    ),
    option(
        _WorkerOption, "-t", "--threads", "n_threads", kind=_COUNT,
        help="CPU threads, where there is no GPU.  [default: one for each core]",
    ),
)  # fmt: skip


def model_options(command: Command) -> Command:
    """The options of a command that loads a model and samples answers."""
    for add in reversed(_SHARED):
        command = add(command)
    return command


def placement_options(command: Command) -> Command:
    """All options that say where a model goes."""
    for add in reversed((*_LAYERS, *_PLACING)):
        command = add(command)
    return command


def placing_options(command: Command) -> Command:
    """The options that say where a model goes, but for its layers and experts."""
    for add in reversed(_PLACING):
        command = add(command)
    return command


def worker_options(command: Command) -> Command:
    """Where a worker listens, and what it computes with."""
    for option in reversed(_OF_A_WORKER):
        command = option(command)
    return command


def placement_of(ctx: click.Context) -> Placement:
    """The placement that was asked for; ``-ot`` decides before what keeps experts on the CPU.

    Raises:
        click.UsageError: a value outside its range.
    """
    from ..runtime.placement import Placement, cpu_moe_overrides

    given = dict(ctx.meta.get(PLACEMENT, {}))
    overrides = given.pop("overrides", ())
    n_cpu_moe = given.pop("n_cpu_moe", 0)
    overrides += cpu_moe_overrides(None if given.pop("cpu_moe", False) else n_cpu_moe)
    try:
        return Placement(overrides=overrides, **given)
    except SettingError as error:
        raise click.UsageError(str(error), ctx) from error


def sampling_of(ctx: click.Context) -> Sampling:
    """The sampling that was asked for.

    Raises:
        click.UsageError: a value outside its range.
    """
    from ..runtime.sampling import Sampling

    try:
        return Sampling(**ctx.meta.get(SAMPLING, {}))
    except SettingError as error:
        raise click.UsageError(str(error), ctx) from error


def revision_option(command: Command) -> Command:
    """``--revision``, of a repository on the hub."""
    return click.option(
        "--revision",
        metavar="REV",
        help="Branch, tag or commit of the repository.  [default: main]",
    )(command)


def verbose_option(command: Command) -> Command:
    """``-v``, before or after the name of the command."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_remember(VERBOSE),
        help="llama.cpp's log and timings on stderr.",
    )(command)


def json_option(command: Command) -> Command:
    """``--json``, passed on as `as_json` and remembered for the errors."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        is_eager=True,
        callback=_remember(JSON),
        help="A JSON document on stdout, errors too.",
    )(command)


def _remember(key: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    def remember(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        ctx.meta[key] = value or ctx.meta.get(key, False)
        return value

    return remember
