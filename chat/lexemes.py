"""A grammar of single characters (GBNF) as one of lexemes, for llguidance.

Promises the same texts. llguidance's lexer takes the longest lexeme that it can, where a grammar of
characters takes any; so what is without recursion becomes a lexeme for as long as no lexeme that
could end here goes on with what may follow another that ends here. What remains are lexemes of one
character, which cost more for each token. Knows nothing of the text of a grammar.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from .automaton import Alphabet, Automaton, TooLargeError, automaton
from .gbnf import Chars, Choice, Lexeme, Part, Repeat, Rule, Sequence, Token, closure, inner_parts
from .making import go_on


def lark_grammar(rules: Mapping[str, Part], end_ids: Collection[int]) -> str:
    """llguidance's grammar of rules, the first of which is ``root``.

    Args:
        end_ids: tokens that end an answer, which no token that is "not another" is.
    """
    cut = _Cut(rules)
    while cut.is_ambiguous():
        pass
    return _Text(rules, cut, end_ids).grammar()


class _Cut:
    """How a grammar is cut into lexemes, as large as is safe."""

    def __init__(self, rules: Mapping[str, Part]) -> None:
        self._rules = rules
        self.regular = _regular(rules)
        self._nullable = closure(rules, is_nullable)
        self._alphabet = Alphabet(rules.values())
        self._broken: set[Part] = set()
        self._broken_rules: set[str] = set()
        self._runs: dict[tuple[Part, int, int], Sequence] = {}
        self._lexemes: dict[Part, Lexeme] = {}
        self._automata: dict[Lexeme, Automaton | None] = {}
        self._going_on: dict[tuple[Lexeme, Lexeme], int] = {}
        self.bodies: dict[str, Part] = {}
        self._cut()

    def is_ambiguous(self) -> bool:
        """Whether the longest lexeme may be the wrong one; if so, it is broken now."""
        if isinstance(self.bodies["root"], Lexeme):
            return False  # all of it is one
        follows = _Follow(self.bodies)
        wrong: set[Lexeme] = set()
        for lexeme in follows.lexemes:
            if self._automaton(lexeme) is None:
                wrong.add(lexeme)
        if not wrong:
            wrong = set(self._clashes(follows))
        for lexeme in wrong:
            if isinstance(lexeme.part, Rule):
                self._broken_rules.add(lexeme.part.name)
            else:
                self._broken.add(lexeme.part)
        if wrong:
            self._cut()
        return bool(wrong)

    def _clashes(self, follows: _Follow) -> Iterator[Lexeme]:
        """Lexemes that go on where another ends that is followed by the same."""
        automata = {
            lexeme: made
            for lexeme in follows.lexemes
            if (made := self._automaton(lexeme)) is not None
        }
        firsts: dict[int, int] = {}  # the characters that sets of lexemes begin with
        for ended, first in automata.items():
            go_on()
            after = follows.after(ended)
            if after not in firsts:
                firsts[after] = 0
                for lexeme in follows.in_set(after):
                    if lexeme in automata:
                        firsts[after] |= automata[lexeme].first
            following = firsts[after]
            for longer, second in automata.items():
                # The first two are cheap, and few pairs are left.
                if not (first.first & second.first and second.later & following):
                    continue
                pair = ended, longer
                if pair not in self._going_on:
                    self._going_on[pair] = first.goes_on(second)
                if self._going_on[pair] & following:
                    yield longer

    def _automaton(self, lexeme: Lexeme) -> Automaton | None:
        if lexeme not in self._automata:
            try:
                made = automaton(lexeme.part, self._rules, self._alphabet)
            except TooLargeError:
                made = None
            self._automata[lexeme] = made
        return self._automata[lexeme]

    def _cut(self) -> None:
        self.bodies = {}
        pending = ["root"]
        while pending:
            name = pending.pop()
            if name not in self.bodies:
                self.bodies[name] = body = self._node(self._rules[name])
                pending += [node.name for node in _leaves(body) if isinstance(node, Rule)]

    def _node(self, part: Part) -> Part:
        if self._is_lexeme(part):
            return self._lexeme(part)
        if isinstance(part, Choice):
            return Choice(tuple(self._node(option) for option in part.options))
        if isinstance(part, Repeat):
            return Repeat(self._node(part.part), part.least, part.most)
        if isinstance(part, Sequence):
            return Sequence(tuple(self._run_nodes(part)))
        return part

    def _run_nodes(self, part: Sequence) -> Iterator[Part]:
        """The parts of a sequence, those that stand together in one lexeme where they may."""
        if self._is_regular(part):
            yield from map(self._node, part.parts)
            return
        begin = 0
        while begin < len(part.parts):
            end = begin
            while end < len(part.parts) and self._is_regular(part.parts[end]):
                end += 1
            if end - begin < 2:
                end = begin + 1
                yield self._node(part.parts[begin])
            else:
                key = part, begin, end
                if key not in self._runs:
                    self._runs[key] = Sequence(part.parts[begin:end])
                run = self._runs[key]
                yield (
                    self._lexeme(run)
                    if run not in self._broken
                    else Sequence(tuple(map(self._node, run.parts)))
                )
            begin = end

    def _is_regular(self, part: Part) -> bool:
        if isinstance(part, Rule):
            return part.name in self.regular
        return not isinstance(part, Token) and all(map(self._is_regular, inner_parts(part)))

    def _is_lexeme(self, part: Part) -> bool:
        if isinstance(part, Rule) and part.name in self._broken_rules:
            return False
        return part not in self._broken and self._is_regular(part)

    def _lexeme(self, part: Part) -> Part:
        if isinstance(part, Sequence) and not part.parts:
            return part
        if part not in self._lexemes:
            self._lexemes[part] = Lexeme(part, is_nullable(part, self._nullable))
        return self._lexemes[part]


def _regular(rules: Mapping[str, Part]) -> set[str]:
    """The rules without recursion and without tokens."""

    def is_regular(part: Part, regular: Collection[str]) -> bool:
        if isinstance(part, Rule):
            return part.name in regular
        return not isinstance(part, Token) and all(
            is_regular(p, regular) for p in inner_parts(part)
        )

    return closure(rules, is_regular)


def is_nullable(part: Part, rules: Collection[str]) -> bool:
    """Whether a part may be the empty text, where these rules may."""
    if isinstance(part, Lexeme):
        return part.nullable
    if isinstance(part, Rule):
        return part.name in rules
    if isinstance(part, Choice):
        return any(is_nullable(option, rules) for option in part.options)
    if isinstance(part, Repeat):
        return part.least == 0 or is_nullable(part.part, rules)
    return isinstance(part, Sequence) and all(is_nullable(p, rules) for p in part.parts)


def _leaves(node: Part) -> Iterator[Part]:
    if isinstance(node, Lexeme) or not inner_parts(node):
        yield node
        return
    for inner in inner_parts(node):
        yield from _leaves(inner)


class _Follow:
    """Which lexemes may come after which."""

    def __init__(self, bodies: Mapping[str, Part]) -> None:
        self._bodies = bodies
        self._nullable = closure(bodies, is_nullable)
        self.lexemes: dict[Lexeme, int] = {}
        for body in bodies.values():
            for leaf in _leaves(body):
                if isinstance(leaf, Lexeme):
                    self.lexemes.setdefault(leaf, len(self.lexemes))
        self._first = dict.fromkeys(bodies, 0)
        names, changed = list(bodies), True
        while changed:
            changed = False
            names.reverse()  # those that others need come behind them in most grammars
            for name in names:
                go_on()
                before, self._first[name] = self._first[name], self._begin(bodies[name])
                changed |= before != self._first[name]
        self._after_rules = dict.fromkeys(bodies, 0)
        self._after = dict.fromkeys(self.lexemes, 0)
        state: object = None
        while state != (state := (dict(self._after_rules), dict(self._after))):
            for name, body in bodies.items():
                go_on()
                self._walk(body, self._after_rules[name])

    def after(self, lexeme: Lexeme) -> int:
        """The set of lexemes that may come directly after one."""
        return self._after[lexeme]

    def in_set(self, places: int) -> Iterable[Lexeme]:
        """The lexemes of a set."""
        return [lexeme for lexeme, place in self.lexemes.items() if places >> place & 1]

    def _begin(self, node: Part) -> int:
        """The lexemes that a node may begin with."""
        if isinstance(node, Lexeme):
            return 1 << self.lexemes[node]
        if isinstance(node, Rule):
            return self._first[node.name]
        if isinstance(node, Sequence):
            found = 0
            for part in node.parts:
                found |= self._begin(part)
                if not is_nullable(part, self._nullable):
                    break
            return found
        found = 0
        for part in inner_parts(node):
            found |= self._begin(part)
        return found

    def _walk(self, node: Part, after: int) -> None:
        """Note what comes after the lexemes and rules in a node, after which these come."""
        if isinstance(node, Lexeme):
            self._after[node] |= after
        elif isinstance(node, Rule):
            self._after_rules[node.name] |= after
        elif isinstance(node, Sequence):
            for part in reversed(node.parts):
                self._walk(part, after)
                begin = self._begin(part)
                after = begin | after if is_nullable(part, self._nullable) else begin
        elif isinstance(node, Repeat):
            again = node.most is None or node.most > 1
            self._walk(node.part, after | self._begin(node.part) if again else after)
        else:
            for part in inner_parts(node):
                self._walk(part, after)


class _Text:
    """Writes a grammar that was cut, in llguidance's variant of Lark."""

    def __init__(self, rules: Mapping[str, Part], cut: _Cut, end_ids: Collection[int]) -> None:
        self._rules, self._cut = rules, cut
        self._ends = sorted(end_ids)
        self._names = {name: index for index, name in enumerate(rules)}
        self._lexemes: dict[Lexeme, str] = {}
        self._terminals: dict[str, str] = {}  # of regular rules, by name

    def grammar(self) -> str:
        """All of it."""
        lines = [
            f"r{self._names[name]}: {self._node(body)}" for name, body in self._cut.bodies.items()
        ]
        lines.insert(0, f"start: r{self._names['root']}")
        for lexeme, name in self._lexemes.items():
            body = self._regex(lexeme.part)
            lines.append(f"{name}: ({body}) & /(?s:.)+/" if lexeme.nullable else f"{name}: {body}")
        lines += [f"{name}: {body}" for name, body in self._terminals.items()]
        return "\n".join(lines) + "\n"

    def _node(self, node: Part) -> str:
        if isinstance(node, Lexeme):
            name = self._lexemes.setdefault(node, f"L{len(self._lexemes)}")
            return f"({name})?" if node.nullable else name
        if isinstance(node, Token):
            if node.negated:
                others = ",".join(map(str, sorted({node.token, *self._ends})))
                return f"<[^{others}]>"
            return f"<[{node.token}]>"
        if isinstance(node, Rule):
            return f"r{self._names[node.name]}"
        if isinstance(node, Sequence):
            return " ".join(map(self._node, node.parts)) or '""'
        if isinstance(node, Choice):
            return f"({' | '.join(map(self._node, node.options))})"
        assert isinstance(node, Repeat)
        return f"({self._node(node.part)}){_times(node)}"

    def _regex(self, part: Part) -> str:
        if isinstance(part, Chars):
            return f"/{_class(part)}/"
        if isinstance(part, Rule):
            name = f"R{self._names[part.name]}"
            if name not in self._terminals:
                self._terminals[name] = ""
                self._terminals[name] = self._regex(self._rules[part.name])
            return name
        if isinstance(part, Sequence):
            if part.parts and all(isinstance(inner, Chars) for inner in part.parts):
                return f"/{''.join(_class(c) for c in part.parts if isinstance(c, Chars))}/"
            return " ".join(map(self._regex, part.parts)) or '""'
        if isinstance(part, Choice):
            return f"({' | '.join(map(self._regex, part.options))})"
        assert isinstance(part, Repeat)
        return f"({self._regex(part.part)}){_times(part)}"


def _times(part: Repeat) -> str:
    if part.most is None:
        return {0: "*", 1: "+"}.get(part.least, f"{{{part.least},}}")
    return f"{{{part.least},{part.most}}}"


def _class(chars: Chars) -> str:
    inside = "".join(
        f"\\x{{{low:X}}}" if low == high else f"\\x{{{low:X}}}-\\x{{{high:X}}}"
        for low, high in _characters(chars)
    )
    if not inside:
        return "(?s:.)" if chars.negated else r"[^\x{0}-\x{10FFFF}]"
    return f"[{'^' if chars.negated else ''}{inside}]"


def _characters(chars: Chars) -> Iterator[tuple[int, int]]:
    """The ranges of a class without surrogates and what is beyond Unicode."""
    for low, high in chars.ranges:
        for begin, end in ((0, 0xD7FF), (0xE000, 0x10FFFF)):
            if max(low, begin) <= min(high, end):
                yield max(low, begin), min(high, end)
