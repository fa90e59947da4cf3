"""Which texts a part of a grammar without recursion is, one character after the other.

Promises the exact set of texts, or none where that would take too many states. Knows nothing of
tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from .gbnf import Chars, Choice, Part, Repeat, Rule, Sequence, inner_parts

_MOST_STATES = 2000


class Alphabet:
    """All characters, as the few groups that the classes of a grammar tell apart.

    A set of groups is an int with a bit for each.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        classes: set[Chars] = set()
        pending = list(parts)
        while pending:
            part = pending.pop()
            pending += inner_parts(part)
            if isinstance(part, Chars):
                classes.add(part)
        borders = {0, 0x110000}
        for chars in classes:
            for low, high in chars.ranges:
                borders |= {low, high + 1} if low <= high else set()
        self._starts = sorted(border for border in borders if border < 0x110000)
        self.all = (1 << len(self._starts)) - 1
        self._places = {start: index for index, start in enumerate(self._starts)}
        self._places[0x110000] = len(self._starts)

    def of(self, chars: Chars) -> int:
        """The groups of a class."""
        groups = 0
        for low, high in chars.ranges:
            if low <= high:
                begin, end = self._places[low], self._places[high + 1]
                groups |= (1 << end) - (1 << begin)
        return self.all & ~groups if chars.negated else groups


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton, whose state 0 is where texts begin and is never entered again.

    ``edges[state]`` are sets of groups and where they lead; ``accepts[state]`` is whether a text
    may end there.
    """

    edges: tuple[tuple[tuple[int, int], ...], ...]
    accepts: tuple[bool, ...]

    @cached_property
    def first(self) -> int:
        """The groups that a text begins with."""
        groups = 0
        for edge, _ in self.edges[0]:
            groups |= edge
        return groups

    @cached_property
    def later(self) -> int:
        """The groups with which a text goes on."""
        groups = 0
        for edges in self.edges[1:]:
            for edge, _ in edges:
                groups |= edge
        return groups

    def goes_on(self, other: Automaton) -> int:
        """The groups with which a whole text of this becomes the beginning of one of the other."""
        groups = 0
        seen, pending = {(0, 0)}, [(0, 0)]
        while pending:
            mine, others = pending.pop()
            if self.accepts[mine] and mine:
                for edge, _ in other.edges[others]:
                    groups |= edge
            for edge, target in self.edges[mine]:
                for other_edge, other_target in other.edges[others]:
                    pair = target, other_target
                    if edge & other_edge and pair not in seen:
                        seen.add(pair)
                        pending.append(pair)
        return groups


class TooLargeError(Exception):
    """The automaton would have too many states."""


def automaton(part: Part, rules: Mapping[str, Part], alphabet: Alphabet) -> Automaton:
    """The automaton of a part, of whose texts the empty one is left out.

    Raises:
        TooLargeError: it would have too many states.
    """
    net = _Net(rules, alphabet)
    end = net.state()
    begin = net.before(part, end)
    return _determined(net, begin, end)


class _Net:
    """A nondeterministic automaton: what leads where with a group, and what with nothing."""

    def __init__(self, rules: Mapping[str, Part], alphabet: Alphabet) -> None:
        self._rules, self._alphabet = rules, alphabet
        self.edges: list[list[tuple[int, int]]] = []
        self.empty: list[list[int]] = []

    def state(self) -> int:
        """A new state."""
        if len(self.edges) >= 2 * _MOST_STATES:
            raise TooLargeError
        self.edges.append([])
        self.empty.append([])
        return len(self.edges) - 1

    def before(self, part: Part, end: int) -> int:
        """The state from which a part leads to the end."""
        if isinstance(part, Chars):
            begin = self.state()
            self.edges[begin].append((self._alphabet.of(part), end))
            return begin
        if isinstance(part, Rule):
            return self.before(self._rules[part.name], end)
        if isinstance(part, Sequence):
            for inner in reversed(part.parts):
                end = self.before(inner, end)
            return end
        if isinstance(part, Choice):
            begin = self.state()
            self.empty[begin] += [self.before(option, end) for option in part.options]
            return begin
        assert isinstance(part, Repeat)
        if part.most is None:
            again = self.state()
            self.empty[again] += [self.before(part.part, again), end]
            begin = again
        else:
            begin = end
            for _ in range(part.most - part.least):
                optional = self.state()
                self.empty[optional] += [self.before(part.part, begin), end]
                begin = optional
        for _ in range(part.least):
            begin = self.before(part.part, begin)
        return begin


def _determined(net: _Net, begin: int, end: int) -> Automaton:
    def closed(states: Iterable[int]) -> frozenset[int]:
        found, pending = set(), list(states)
        while pending:
            state = pending.pop()
            if state not in found:
                found.add(state)
                pending += net.empty[state]
        return frozenset(found)

    first = closed([begin])
    # The beginning is a state of its own, in which no text ends.
    sets: list[frozenset[int]] = [first]
    numbers: dict[frozenset[int], int] = {}
    edges: list[tuple[tuple[int, int], ...]] = []
    while len(edges) < len(sets):
        if len(sets) > _MOST_STATES:
            raise TooLargeError
        leading: dict[int, int] = {}
        moves = [move for state in sets[len(edges)] for move in net.edges[state]]
        for groups, targets in _apart(moves):
            target = closed(targets)
            if target not in numbers:
                numbers[target] = len(sets)
                sets.append(target)
            leading[numbers[target]] = leading.get(numbers[target], 0) | groups
        edges.append(tuple((groups, target) for target, groups in leading.items()))
    accepts = (False, *(end in states for states in sets[1:]))
    return Automaton(tuple(edges), accepts)


def _apart(moves: list[tuple[int, int]]) -> list[tuple[int, frozenset[int]]]:
    """Sets of groups that have none in common, each with all targets to which its groups lead."""
    parts: list[tuple[int, frozenset[int]]] = []
    for groups, target in moves:
        rest = groups
        split: list[tuple[int, frozenset[int]]] = []
        for known, targets in parts:
            if common := known & rest:
                split.append((common, targets | {target}))
            if known & ~rest:
                split.append((known & ~rest, targets))
            rest &= ~known
        if rest:
            split.append((rest, frozenset((target,))))
        parts = split
    return parts
