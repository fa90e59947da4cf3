"""llama.cpp's grammars (GBNF), read.

Promises to read what llama.cpp's parser reads as it reads it, and to refuse the rest with its line;
and that a rule which never comes to an end is refused. Knows nothing of llguidance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from string import hexdigits

from ..errors import SettingError
from ..untrusted import shown
from .making import go_on

MAX_REPEATS = 100_000
"""How often a part may be repeated, where there is a limit."""

_MOST_DEPTH = 100  # of parentheses
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX = {"x": 2, "u": 4, "U": 8}

Ranges = tuple[tuple[int, int], ...]
"""Code points, in ranges that include their ends."""


@dataclass(frozen=True, eq=False)
class Chars:
    """One character of a class."""

    ranges: Ranges
    negated: bool = False


@dataclass(frozen=True, eq=False)
class Token:
    """One token of the vocabulary, or any but that one."""

    token: int
    negated: bool


@dataclass(frozen=True, eq=False)
class Rule:
    """What a rule stands for."""

    name: str


@dataclass(frozen=True, eq=False)
class Sequence:
    """Parts one after the other; without any, the empty text."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Choice:
    """One of several."""

    options: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """A part several times; ``most`` is None where there is no limit."""

    part: Part
    least: int
    most: int | None


@dataclass(frozen=True, eq=False)
class Lexeme:
    """A part that a lexer reads at once, as `lexemes` finds them; the empty text is none of it."""

    part: Part
    nullable: bool


Part = Chars | Token | Rule | Sequence | Choice | Repeat | Lexeme

ANY = Chars((), negated=True)


@dataclass(frozen=True)
class Tokens:
    """What a grammar may name tokens by.

    Args:
        of: the token that a text is, None where it is not one.
        count: how many there are.
        ends: those that end an answer, which no grammar asks for: they come where it ends.
    """

    of: Callable[[str], int | None]
    count: int
    ends: Collection[int]


def read_grammar(text: str, where: str, tokens: Tokens) -> dict[str, Part]:
    """The rules of a grammar that ``root`` needs, without alternatives that never end.

    Args:
        where: the setting that it came in, for errors.
        tokens: of the model.

    Raises:
        SettingError: it is not a grammar, a rule is undefined, or no text ends.
    """
    rules = _Parser(text, where, tokens).rules()
    for name, part in rules.items():
        for used in _used(part):
            if used not in rules:
                raise SettingError(
                    f"{where} has no rule {shown(used)}", found=f"it in the rule {name}"
                )
    if "root" not in rules:
        raise SettingError(f"{where} has no rule 'root', with which a text begins")
    ending = closure(rules, ends)
    if "root" not in ending:
        raise SettingError(f"{where}: no text that follows it ever ends")
    needed: dict[str, Part] = {}
    pending = ["root"]
    while pending:
        name = pending.pop()
        if name not in needed:
            needed[name] = _without_endless(rules[name], ending)
            pending += _used(needed[name])
    return needed


def closure(rules: Mapping[str, Part], holds: Callable[[Part, Collection[str]], bool]) -> set[str]:
    """The rules of which something holds that may depend on the rules of which it does."""
    found: set[str] = set()
    names, size = list(rules), -1
    while size != len(found):
        size = len(found)
        names.reverse()  # those that others need come behind them in most grammars
        for name in names:
            go_on()
            if name not in found and holds(rules[name], found):
                found.add(name)
    return found


def _used(part: Part) -> Iterator[str]:
    """The names of the rules in a part."""
    if isinstance(part, Rule):
        yield part.name
    for inner in inner_parts(part):
        yield from _used(inner)


def inner_parts(part: Part) -> tuple[Part, ...]:
    """What a part consists of."""
    if isinstance(part, Sequence):
        return part.parts
    if isinstance(part, Choice):
        return part.options
    return (part.part,) if isinstance(part, Repeat) else ()


def ends(part: Part, ending: Collection[str]) -> bool:
    """Whether some text of a part ends, where those of these rules do."""
    if isinstance(part, Rule):
        return part.name in ending
    if isinstance(part, Chars):
        return part.negated or any(low <= high for low, high in part.ranges)
    if isinstance(part, Repeat):
        return part.least == 0 or ends(part.part, ending)
    if isinstance(part, Choice):
        return any(ends(option, ending) for option in part.options)
    return all(ends(inner, ending) for inner in inner_parts(part))


def _without_endless(part: Part, ending: Collection[str]) -> Part:
    """A part that ends, without alternatives that do not."""
    if isinstance(part, Choice):
        options = [option for option in part.options if ends(option, ending)]
        return Choice(tuple(_without_endless(option, ending) for option in options))
    if isinstance(part, Sequence):
        return Sequence(tuple(_without_endless(inner, ending) for inner in part.parts))
    if isinstance(part, Repeat):
        if not ends(part.part, ending):
            return Sequence(())
        return Repeat(_without_endless(part.part, ending), part.least, part.most)
    return part


class _Parser:
    """Reads a grammar from its beginning to its end, as ``llama_grammar_parser`` does."""

    def __init__(self, text: str, where: str, tokens: Tokens) -> None:
        # What llama.cpp reads ends at a NUL.
        self._text, self._at, self._depth = text.split("\0")[0], 0, 0
        self._where, self._tokens = where, tokens

    def rules(self) -> dict[str, Part]:
        """All rules; of two with a name the later."""
        rules: dict[str, Part] = {}
        self._space(lines=True)
        while self._at < len(self._text):
            name = self._name()
            self._space()
            self._expect("::=")
            self._space(lines=True)
            rules[name] = self._choice(nested=False)
            if self._next not in ("", "\r", "\n"):
                raise self._fault("the end of the line")
            self._space(lines=True)
        return rules

    # --- parts

    def _choice(self, *, nested: bool) -> Part:
        options = [self._sequence(nested)]
        while self._next == "|":
            self._at += 1
            self._space(lines=True)
            options.append(self._sequence(nested))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self, nested: bool) -> Part:
        parts: list[Part] = []
        last = 0  # how many of the last parts a repetition is about
        while True:
            if self._next == '"':
                letters = self._literal()
                parts += [Sequence(letters)] if letters else []
                last = bool(letters)
            elif self._next == "[":
                chars = self._class()
                parts += [chars] if chars else []
                last = chars is not None
            elif self._next and self._next in "<!":
                parts.append(self._token())
                last = 1
            elif self._next in _WORD:
                parts.append(Rule(self._name()))
                last = 1
            elif self._next == "(":
                parts.append(self._group())
                last = 1
            elif self._next == ".":
                self._at += 1
                parts.append(ANY)
                last = 1
            elif self._next and self._next in "*+?{":
                least, most = self._repetition(nested)
                if not last:
                    raise self._fault("something to repeat")
                parts[-1] = Repeat(parts[-1], least, most)
            else:
                return parts[0] if len(parts) == 1 else Sequence(tuple(parts))
            self._space(lines=nested)

    def _group(self) -> Part:
        self._at += 1
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise self._fault(f"at most {_MOST_DEPTH} parentheses in each other")
        self._space(lines=True)
        part = self._choice(nested=True)
        self._expect(")")
        self._depth -= 1
        return part

    def _literal(self) -> tuple[Part, ...]:
        self._at += 1
        letters: list[Part] = []
        while self._next != '"':
            code = self._character()
            letters.append(Chars(((code, code),)))
        self._at += 1
        return tuple(letters)

    def _class(self) -> Chars | None:
        """A class of characters; None for one without any, which llama.cpp takes for nothing."""
        self._at += 1
        negated = self._next == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._next != "]":
            low = high = self._character()
            if self._next == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._character()
            ranges.append((low, high))
        self._at += 1
        return Chars(tuple(ranges), negated) if ranges else None

    def _token(self) -> Token:
        negated = self._next == "!"
        self._at += negated
        begin = self._at
        self._expect("<")
        end = self._text.find(">", self._at)
        if end < 0:
            raise self._fault("a > after the token")
        name, self._at = self._text[begin : end + 1], end + 1
        inner = name[1:-1]
        if inner.startswith("["):
            digits = inner[1:-1]
            if not (inner.endswith("]") and digits.isascii() and digits.isdigit()):
                raise self._fault("a token's id, as in <[1000]>")
            token: int | None = int(digits) if len(digits) < 10 else None
        else:
            token = self._tokens.of(name)
        if token is None or token >= self._tokens.count:
            raise self._fault(f"a token of the model, not {shown(name)}")
        if token in self._tokens.ends and not negated:
            raise self._fault(f"a token that does not end the answer, not {shown(name)}")
        return Token(token, negated)

    def _repetition(self, nested: bool) -> tuple[int, int | None]:
        sign = self._next
        self._at += 1
        if sign != "{":
            return (int(sign == "+"), 1 if sign == "?" else None)
        self._space(lines=nested)
        least = self._count()
        self._space(lines=nested)
        most: int | None = least
        if self._next == ",":
            self._at += 1
            self._space(lines=nested)
            most = self._count() if self._next.isascii() and self._next.isdigit() else None
            self._space(lines=nested)
        self._expect("}")
        if most is not None and most < least:
            raise self._fault(f"a number from {least} up as the most repetitions")
        return least, most

    # --- letters

    @property
    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _count(self) -> int:
        begin = self._at
        while self._next.isascii() and self._next.isdigit():
            self._at += 1
        digits = self._text[begin : self._at]
        if not digits or len(digits) > 6 or int(digits) > MAX_REPEATS:
            raise self._fault(f"a number up to {MAX_REPEATS:,}")
        return int(digits)

    def _name(self) -> str:
        begin = self._at
        while self._next in _WORD:
            self._at += 1
        if begin == self._at:
            raise self._fault("the name of a rule")
        return self._text[begin : self._at]

    def _character(self) -> int:
        letter = self._next
        if not letter:
            raise self._fault("the end of a text or of a class")
        self._at += 1
        if letter != "\\":
            return ord(letter)
        kind = self._next
        self._at += 1
        if kind in _ESCAPES and kind:
            return ord(_ESCAPES[kind])
        size = _HEX.get(kind, 0)
        digits = self._text[self._at : self._at + size]
        if not size or len(digits) < size or not set(digits) <= set(hexdigits):
            raise self._fault(
                r"an escape: \n, \t, \r, \\, \", \[, \], \-, \xXX, \uXXXX, \UXXXXXXXX"
            )
        code = int(digits, 16)
        if code > 0x10FFFF:
            raise self._fault("a character of Unicode, at most U+10FFFF")
        self._at += size
        return code

    def _space(self, *, lines: bool = False) -> None:
        while self._next and (self._next in " \t#" or (lines and self._next in "\r\n")):
            if self._next == "#":
                while self._next and self._next not in "\r\n":
                    self._at += 1
            else:
                self._at += 1

    def _expect(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise self._fault(text)
        self._at += len(text)

    def _fault(self, expected: str) -> SettingError:
        before = self._text[: self._at]
        line = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1) + 1
        rest = self._text[self._at :].split("\n")[0]
        return SettingError(
            f"{self._where} is not GBNF in line {line}, column {column}",
            found=shown(rest) if rest else "the end of the line",
            expected=expected,
        )
