"""Templates that never end, take all memory or break Jinja: each costs one error.

The limits are those of the product, smaller, so that the tests do not wait for them.
"""

from __future__ import annotations

import pytest

from llama4_edge.chat import template_process
from llama4_edge.chat.template import ChatTemplate
from llama4_edge.errors import TemplateError


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "SECONDS", 0.06)
    monkeypatch.setattr(template_process, "MEMORY_BYTES", 160 << 20)


def grown(step: str, first: str = "'ab'") -> str:
    """A value that each of forty steps makes from itself."""
    return (
        f"{{% set ns = namespace(s={first}) %}}"
        f"{{% for i in range(40) %}}{{% set ns.s = {step} %}}{{% endfor %}}{{{{ ns.s }}}}"
    )


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "x" + closing * depth


HOSTILE = {
    # strings and lists that double
    "~": grown("ns.s ~ ns.s"),
    "+": grown("ns.s + ns.s"),
    "+ of lists": grown("ns.s + ns.s", "[1]"),
    "join": grown("[ns.s, ns.s] | join"),
    "join between": grown("ns.s | join(ns.s)"),
    "format filter": grown("'%s%s' | format(ns.s, ns.s)"),
    "format method": grown("'{0}{0}'.format(ns.s)"),
    "percent": grown("'%s%s' % (ns.s, ns.s)"),
    "replace": grown("ns.s | replace('a', ns.s)"),
    "escape": grown("ns.s | replace('&', '&&') | forceescape", "'&'"),
    "urlencode": grown("(ns.s ~ ns.s) | urlencode", "'%'"),
    "tojson": grown("ns.s | tojson | tojson", "'\"'"),
    "repr": grown("[ns.s] | string | string ~ ns.s"),
    "pprint": grown("[ns.s, ns.s] | pprint"),
    "lists of lists": grown("[ns.s, ns.s]"),
    "slices": grown("ns.s[:] ~ ns.s[::-1]"),
    "filter block": "{% filter center(10**12) %}x{% endfilter %}",
    "xmlattr": grown("{'a': ns.s, 'b': ns.s} | xmlattr"),
    "wordwrap": grown("(ns.s ~ ns.s) | wordwrap(1)"),
    "indent of itself": grown("ns.s | indent(ns.s | length, true)"),
    # much out of little
    "percent width": '{{ "%5000000000d" % 1 }}',
    "percent star": '{{ "%*d" % (5000000000, 1) }}',
    "percent precision": '{{ "%.2000000000f" % 1.0 }}',
    "format width": '{{ "{:5000000000}".format(1) }}',
    "format filter width": '{{ "%5000000000s" | format(1) }}',
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "center": "{{ 'x' | center(10**10) }}",
    "expandtabs": "{{ '\t'.expandtabs(2000000000) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "indent in tojson": "{{ [[1]] | tojson(indent=10**10) }}",
    "separators in tojson": "{{ [1, 2] | tojson(separators=(',' * 10**10, ':')) }}",
    "repetition": "{{ 'x' * 10**10 }}",
    "repetition of a list": "{{ [0] * 10**10 }}",
    "repetition of a tuple": "{{ (0,) * 10**10 }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "slice": "{{ [1] | slice(10**10) | list }}",
    "bytes": "{{ (10**10).to_bytes(10**10, 'big') }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "strftime": "{{ strftime_now('%c' * 10**8) }}",
    "raise": "{{ raise_exception('x' * 10**10) }}",
    "cycler": "{{ cycler(*('x' * 10**10)) }}",
    "undefined name": "{{ ({} | attr('x' * 10**10)).y }}",
    # numbers
    "power": "{{ 9 ** 387420489 }}",
    "power of powers": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "squares": grown("ns.s * ns.s", "7"),
    "decimals": "{{ 10 ** 5000 }}",
    "float": "{{ 10.0 ** 400 }}",
    # no end
    "loops in loops": "{% for a in range(99999) %}" * 4 + "x" + "{% endfor %}" * 4,
    "loops over strings": (
        "{% set s = 'x' * 99999 %}{% for a in s %}{% for b in s %}{% for c in s %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "recursive loop": (
        "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}"
    ),
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macro twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "macros of each other": (
        "{% macro a(n) %}{% if n %}{{ b(n - 1) }}{{ b(n - 1) }}{% endif %}{% endmacro %}"
        "{% macro b(n) %}{{ a(n) }}{{ a(n) }}{% endmacro %}{{ a(60) }}"
    ),
    "caller": (
        "{% macro m(n) %}{% if n %}{% call m(n - 1) %}{{ caller() }}{{ caller() }}{% endcall %}"
        "{% endif %}{{ caller() }}{% endmacro %}{% call m(60) %}x{% endcall %}"
    ),
    "sum": "{{ range(99999) | map('string') | list | sum(start=[]) }}",
    "sort": "{% for i in range(99999) %}{{ range(i) | map('string') | sort }}{% endfor %}",
    "groupby": (
        "{% for i in range(99999) %}{% set x = range(99999) | groupby('real') | list %}{% endfor %}"
    ),
    "count": "{% for i in range(99999) %}{{ ('x' * 9999999).count('xy') }}{% endfor %}",
    "quadratic trim": "{% for i in range(99999) %}{{ (' ' * (9999999 + i)) | trim }}{% endfor %}",
    "striptags": "{{ ('<' * 99999999) | striptags }}",
    "urlize": "{{ ('http://x.y ' * 9999999) | urlize }}",
    # the compiler
    "nested loops": nested(100, "{% for x in y %}", "{% endfor %}"),
    "nested conditions": nested(3000, "{% if x %}", "{% endif %}"),
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "not": "{{ " + "not " * 5000 + "1 }}",
    "minus": "{{ " + "-" * 5000 + "1 }}",
    "attributes": "{{ x" + ".y" * 20_000 + " }}",
    "filters": "{{ x" + " | upper" * 20_000 + " }}",
    "sums": "{{ " + "1+" * 20_000 + "1 }}",
    "folded constant": "{{ ('x' * 10**9) ~ ('y' * 10**9) }}",
    "folded power": "{% if 9 ** 99999999 %}x{% endif %}",
    "folded filter": "{{ 'x' | center(10**10) | upper }}",
    "twenty megabytes": "x" * 20_000_000,
    "many names": "{% set a" + ", a" * 40_000 + " = 1 %}",
    "an endless comment": "{#" * 200_000,
    "an endless string": "{{ '" + "x" * 100_000,
    "an integer without end": "{{ " + "9" * 100_000 + " }}",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_costs_one_error(name: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(HOSTILE[name]).render([{"role": "user", "content": "Hello"}])
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()
