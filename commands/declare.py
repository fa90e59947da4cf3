"""Typed options: a frozen dataclass a command, each of its fields one argument or option.

Promises that the fields of a command's dataclass are all that it can be asked, that a field which
was not given is None (or an empty tuple, or False), so that every default is the library's own, and
that help shows those defaults without loading the library for anything else. Does not know what the
options mean.

    @dataclass(frozen=True)
    class GreetOptions:
        name: str = argument()
        loud: bool = flag("--loud", help="Shout.")
        engine: EngineOptions = group(EngineOptions)

    @command(GreetOptions)
    def greet(options: GreetOptions) -> None:
        \"\"\"Greet somebody.\"\"\"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, fields
from inspect import cleandoc
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import click

from ..errors import SettingError
from . import JSON, VERBOSE
from .flags import with_flags
from .llama_cpp import normalized

T = TypeVar("T")

# As in llama.cpp's tools.
HELP_FLAGS = {"help_option_names": ["-h", "--help"]}

_JSON_FLAG = "--json"

_PARAMETER, _GROUP = "llama4_edge.parameter", "llama4_edge.group"
_MakeParameter = Callable[[str], click.Parameter]


def argument(
    *, kind: Any = str, metavar: str | None = None, required: bool = True, nargs: int = 1
) -> Any:
    """A field that is an argument."""

    def make(name: str) -> click.Parameter:
        return click.Argument([name], type=kind, metavar=metavar, required=required, nargs=nargs)

    return field(default=None, metadata={_PARAMETER: make})


def option(
    *flags: str, kind: Any, help: str, metavar: str = "N", multiple: bool = False, **more: Any
) -> Any:
    """A field that is an option with a value; None, or (), where it was not given.

    Args:
        flags: its names, the first of which is shown in errors.
        kind: a type of click, or a function from the word to the value.
        multiple: it may be given several times; the field is a tuple.
        more: what else ``click.Option`` takes.
    """

    def make(name: str) -> click.Parameter:
        return DefaultShown(
            [*flags, name], type=kind, help=help, metavar=metavar, multiple=multiple, **more
        )

    return field(default=() if multiple else None, metadata={_PARAMETER: make})


def flag(*flags: str, help: str, **more: Any) -> Any:
    """A field that is True where the option was given, and False where it was not."""

    def make(name: str) -> click.Parameter:
        return click.Option([*flags, name], is_flag=True, help=help, **more)

    return field(default=False, metadata={_PARAMETER: make})


def group(cls: type[T]) -> T:
    """A field that is a dataclass of options, which several commands share."""
    shared: T = field(default_factory=cls, metadata={_GROUP: cls})
    return shared


def json_flag() -> Any:
    """``--json``, which errors obey too, those of the command line included."""
    return flag(_JSON_FLAG, help="A JSON document on stdout, errors too.")


def verbose_flag() -> Any:
    """``-v``, before or after the name of the command."""

    def given_before(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        return value or bool(ctx.meta.get(VERBOSE))

    return flag(
        "-v", "--verbose", help="llama.cpp's log and timings on stderr.", callback=given_before
    )


def given(options: object) -> dict[str, Any]:
    """The fields of `options` that were given, without groups, as arguments for the library."""
    values = {
        item.name: getattr(options, item.name)
        for item in fields(options)  # type: ignore[arg-type]
        if _GROUP not in item.metadata
    }
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value != ()
    }


@contextmanager
def usage_errors() -> Iterator[None]:
    """A setting outside its range in this block is a command line that makes no sense.

    Raises:
        click.UsageError: instead of a SettingError.
    """
    try:
        yield
    except SettingError as error:
        raise usage_error(with_flags(str(error))) from error


def usage_error(problem: str) -> click.UsageError:
    """The error of a command line that makes no sense, with how the command is used."""
    return click.UsageError(problem, click.get_current_context(silent=True))


class DefaultShown(click.Option):
    """An option whose help ends with the default that the library declares."""

    defaults: Callable[[], Mapping[str, object]] | None = None

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's names and help."""
        record = super().get_help_record(ctx)
        default = self.defaults().get(self.name or "") if self.defaults else None
        if record is None or default is None or isinstance(default, tuple):
            return record
        if isinstance(default, Path) and default.is_relative_to(Path.home()):
            default = f"~/{default.relative_to(Path.home())}"
        return record[0], f"{record[1]}  [default: {default}]"


class OptionsCommand(click.Command):
    """A command that gives its dataclass of options to a function, and exits with its result.

    Args:
        name: the command's name.
        options: the dataclass.
        run: what is done; an exit code, or None for 0.
        recipes: whether the help ends with the recipes, a line each.
    """

    def __init__(
        self,
        name: str,
        options: type[T],
        run: Callable[[T], int | None],
        *,
        recipes: bool = False,
    ) -> None:
        super().__init__(
            name,
            params=list(_parameters(options)),
            help=cleandoc(run.__doc__ or ""),
            context_settings=HELP_FLAGS,
        )
        self._options = options
        self._run = run
        self._recipes = recipes

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, with llama.cpp's flags translated or refused first."""
        if not ctx.resilient_parsing:
            takes_json = any(_JSON_FLAG in param.opts for param in self.params)
            # Before anything else is read, because that may be wrong.
            ctx.meta[JSON] = takes_json and _JSON_FLAG in takewhile("--".__ne__, args)
            args = list(normalized(ctx, self, args))
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # what click's parser raises names no command
            if error.message.startswith("Got unexpected extra argument"):
                raise click.UsageError(
                    error.message + self._where_more_goes(), error.ctx
                ) from error
            raise

    def _where_more_goes(self) -> str:
        """What an argument too many was probably meant as."""
        if any("-o" in param.opts for param in self.params):
            return ". The output is given with -o."
        if any(param.name == "prompt" for param in self.params):
            return ". Quote the prompt."
        return ""

    def invoke(self, ctx: click.Context) -> None:
        """Run, and exit."""
        ctx.exit(self._run(_value(self._options, ctx.params)) or 0)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, then the recipes."""
        super().format_options(ctx, formatter)
        if self._recipes:
            from ..quant.recipes import RECIPES

            with formatter.section("Recipes"):
                formatter.write_dl([(recipe.name, recipe.summary) for recipe in RECIPES.values()])


def command(
    options: type[T], *, recipes: bool = False
) -> Callable[[Callable[[T], int | None]], OptionsCommand]:
    """Make a command of a function of its options; its docstring is the help."""

    def decorate(run: Callable[[T], int | None]) -> OptionsCommand:
        return OptionsCommand(run.__name__.replace("_", "-"), options, run, recipes=recipes)

    return decorate


def _parameters(options: type[Any]) -> Iterator[click.Parameter]:
    """A parameter for each field, in their order, groups in their place."""
    for item in fields(options):
        if _GROUP in item.metadata:
            yield from _parameters(item.metadata[_GROUP])
            continue
        make: _MakeParameter = item.metadata[_PARAMETER]
        parameter = make(item.name)
        if isinstance(parameter, DefaultShown):
            parameter.defaults = getattr(options, "defaults", None)
        yield parameter


def _value(options: type[T], values: Mapping[str, Any]) -> T:
    arguments = {
        item.name: (
            _value(item.metadata[_GROUP], values) if _GROUP in item.metadata else values[item.name]
        )
        for item in fields(options)  # type: ignore[arg-type]
    }
    return options(**arguments)
