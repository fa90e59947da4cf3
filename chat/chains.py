"""How far schemas lead from one to the next.

Promises a bound that holds whichever way they are followed, in linear time. Knows nothing of what
the schemas say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def longest_chain(following: Mapping[str, Sequence[str]]) -> int:
    """The most places that lead to one another without a repetition, or a few more.

    Those that can all reach each other count as a chain of them all. They are found as Tarjan does
    (1972), without recursion.

    Args:
        following: where each place leads; each of these is a key too.
    """
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    bounds: dict[str, int] = {}
    members: list[str] = []  # of what is not known yet
    for start in following:
        path = [start] if start not in order else []
        rests = {start: iter(following[start])}
        while path:
            place = path[-1]
            if place not in order:
                order[place] = lowest[place] = len(order)
                members.append(place)
            for other in rests[place]:
                if other not in order:
                    path.append(other)
                    rests[other] = iter(following[other])
                    break
                if other not in bounds:
                    lowest[place] = min(lowest[place], order[other])
            else:
                path.pop()
                if path:
                    lowest[path[-1]] = min(lowest[path[-1]], lowest[place])
                if lowest[place] == order[place]:
                    group = [members.pop()]
                    while group[-1] != place:
                        group.append(members.pop())
                    others = (bounds.get(one, 0) for each in group for one in following[each])
                    bounds.update(dict.fromkeys(group, len(group) + max(others, default=0)))
    return max(bounds.values(), default=0)
