"""The page's Markdown: what a text becomes, and that no text takes long or goes deep."""

from __future__ import annotations

import random

import pytest

from tests.server.page.markdown import of_texts

CASES = {
    # blocks
    "": "",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# A #\n### B\n####### C": "<h1>A</h1><h3>B</h3><p>####### C</p>",
    "#hashtag": "<p>#hashtag</p>",
    "a\n---\nb\n***": "<p>a</p><hr><p>b</p><hr>",
    "> a\n> > b\n\nc": "<quote><p>a</p><quote><p>b</p></quote></quote><p>c</p>",
    "    four spaces": "<p>four spaces</p>",
    # code
    "```py\nx = 1\n\n  y\n```\nz": "<pre py>x = 1\n\n  y</pre><p>z</p>",
    "````\n```\n````": "<pre >```</pre>",
    "~~~ js title\na": "<pre js open>a</pre>",
    "text\n```\n<b>\n```": "<p>text</p><pre ><b></pre>",
    "```not a fence```": "<p><code>not a fence</code></p>",
    # lists
    "- a\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></>",
    "* a\n\n* b": "<ul loose><li><p>a</p></li><li><p>b</p></li></>",
    "3. a\n4. b": "<ol 3><li><p>a</p></li><li><p>b</p></li></>",
    "1. a\n  - b\n2. c": "<ol 1><li><p>a</p><ul><li><p>b</p></li></></li><li><p>c</p></li></>",
    "1. a\n\n   ```\n   x\n   ```\n2. b": (
        "<ol 1><li><p>a</p><pre >x</pre></li><li><p>b</p></li></>"
    ),
    "- a\nlazy\n\nend": "<ul><li><p>a<br>lazy</p></li></><p>end</p>",
    "- [ ] a\n- [x] b": "<ul><li>[ ]<p>a</p></li><li>[x]<p>b</p></li></>",
    "- - a": "<ul><li><ul><li><p>a</p></li></></li></>",
    "-1 is a number": "<p>-1 is a number</p>",
    # tables
    "| a | b |\n|---|:-:|\n| 1 | *2* |\n| 3 |\nend": (
        "<table -,center>a|b/1|<em>2</em>/3|</table><p>end</p>"
    ),
    "a | b\n:- | -:\nx \\| y | `z`": "<table left,right>a|b/x | y|<code>z</code></table>",
    "a | b\nno table": "<p>a | b<br>no table</p>",
    # emphasis
    "*a* _b_ **c** __d__ ***e*** ~~f~~": (
        "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> "
        "<em><strong>e</strong></em> <del>f</del></p>"
    ),
    "snake_case_name and 2 * 3 * 4": "<p>snake_case_name and 2 * 3 * 4</p>",
    "**a*b** *c **d** e*": "<p><strong>a*b</strong> <em>c <strong>d</strong> e</em></p>",
    "**not closed": "<p>**not closed</p>",
    "**重点。**后面": "<p><strong>重点。</strong>后面</p>",
    # code in a line, and what is escaped
    "`a` ``b ` c`` ` d ` `open": "<p><code>a</code> <code>b ` c</code> <code>d</code> `open</p>",
    "`*a*` \\*b\\* \\c": "<p><code>*a*</code> *b* \\c</p>",
    "&lt;b&gt; &amp;amp; &unknown;": "<p>&lt;b> &amp; &unknown;</p>",
    # formulas stay as they were written
    "\\(a_1 \\, b_2\\) and \\[x*y*z\\]": "<p>\\(a_1 \\, b_2\\) and \\[x*y*z\\]</p>",
    "$$\n\\frac{a_i}{b_i}\\,*c*\n$$": "<p>$$<br>\\frac{a_i}{b_i}\\,*c*<br>$$</p>",
    "$x_1$ and $y_2*3*4$": "<p>$x_1$ and $y_2*3*4$</p>",
    "*$5* and *$10*, $ *a* $": "<p><em>$5</em> and <em>$10</em>, $ <em>a</em> $</p>",
    "\\(not *closed*": "<p>(not <em>closed</em></p>",
    # links
    "[a *b*](https://x.y/z 'title')": "<p><a https://x.y/z>a <em>b</em></a></p>",
    "[a](https://x.y/(z))": "<p><a https://x.y/(z)>a</a></p>",
    "<https://x.y> mailto: [m](mailto:a@b.c)": (
        "<p><a https://x.y/>https://x.y</a> mailto: <a mailto:a@b.c>m</a></p>"
    ),
    "See https://x.y/a_b_c. (https://x.y/d)": (
        "<p>See <a https://x.y/a_b_c>https://x.y/a_b_c</a>. (<a https://x.y/d>https://x.y/d</a>)</p>"
    ),
    "[https://x.y](https://z.w)": "<p><a https://z.w/>https://x.y</a></p>",
    # A picture would be fetched from elsewhere.
    "![alt](https://x.y/p.png)": "<p><a https://x.y/p.png>alt</a></p>",
}

HOSTILE = {
    "<script>alert(1)</script>": "<p>&lt;script>alert(1)&lt;/script></p>",
    "<img src=x onerror=alert(1)>": "<p>&lt;img src=x onerror=alert(1)></p>",
    "[a](javascript:alert(1))": "<p>[a](javascript:alert(1))</p>",
    "[a](JaVaScRiPt:alert(1))": "<p>[a](JaVaScRiPt:alert(1))</p>",
    "[a](java\tscript:alert(1))": "<p>[a](java\tscript:alert(1))</p>",
    "[a](&#106;avascript:alert(1))": "<p>[a](&#106;avascript:alert(1))</p>",
    "[a](data:text/html,<script>)": "<p>[a](data:text/html,&lt;script>)</p>",
    "[a](vbscript:x) [b](file:///etc/passwd)": "<p>[a](vbscript:x) [b](file:///etc/passwd)</p>",
    "[a](/v1/models) [b](//x.y) [c](#d)": "<p>[a](/v1/models) [b](//x.y) [c](#d)</p>",
    "<javascript:alert(1)>": "<p>&lt;javascript:alert(1)></p>",
    "![a](javascript:alert(1))": "<p>![a](javascript:alert(1))</p>",
    '[a](https://x.y" onclick="b)': '<p>[a](<a https://x.y/>https://x.y</a>" onclick="b)</p>',
    "[a](https://x.y/\u202etxt.exe)": "<p>[a](https://x.y/\u202etxt.exe)</p>",
}  # fmt: skip


def test_texts_become_the_blocks_that_people_expect() -> None:
    assert dict(zip(CASES, of_texts("html", list(CASES)), strict=True)) == CASES


def test_hostile_texts_stay_text() -> None:
    assert dict(zip(HOSTILE, of_texts("html", list(HOSTILE)), strict=True)) == HOSTILE


BOMBS = [
    "*a " * 20_000,
    "*a " * 10_000 + "a* " * 10_000,
    "**_~~" * 10_000,
    "[" * 50_000,
    "[a](" * 20_000,
    "![" * 20_000,
    "[" * 20 + "](x" * 20_000,
    "> " * 20_000 + "a",
    "- " * 20_000 + "a",
    "1. " * 20_000 + "a",
    "\n".join(" " * at + "- a" for at in range(500)),
    "".join("`" * at + "a" for at in range(500)),
    "# " + " " * 50_000 + "#a",
    "|" * 50_000 + "\n" + "|-" * 50_000,
    "a|b\n" * 20_000,
    "http://" * 10_000,
    "http://a" + ")" * 20_000,
    "<http://" * 10_000,
    "[a](http://" + "(" * 20_000,
    "[a](\\" * 20_000,
    "&" * 50_000,
    "\\" * 50_000,
    "- a\n" + "b\n" * 20_000,
    "-\n\n" * 10_000,
    "a" * 200_000,
]


def test_no_text_grows_or_goes_deep() -> None:
    # Node ends what takes longer than the time that it is given.
    for bomb, measured in zip(BOMBS, of_texts("size", BOMBS), strict=True):
        assert measured["letters"] < 30 * len(bomb) + 1000, bomb[:40]
        assert measured["depth"] < 150, bomb[:40]


PIECES = [
    "a", "b ", "\n", "\n\n", "- ", "1. ", "2", "2. ", "*", "**", "_", "`", "```", "```py\n", "> ",
    "#", "# ", "|", "|-|-|\n", "a|b\n", "-|-\n", "  ", "    ", "[", "](", "http://x.y", ")", "!",
    "<b>", "&lt;", "\\", "~~", "---\n", "\r\n", "😀", "\u202e", "[x] ",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_text_that_comes_letter_by_letter_is_the_same_in_the_end(seed: int) -> None:
    rng = random.Random(seed)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(3, 16))) for _ in range(1000)]
    whole = zip(texts, of_texts("pieces", texts), strict=True)
    assert [text for text, is_same in whole if not is_same] == []
