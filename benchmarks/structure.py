"""What holding an answer to a form costs a token, beside llama.cpp's own grammar sampler.

    python -m benchmarks.structure MODEL [--tokens 300] [--peer-tokens 20]

For a JSON Schema, JSON without one, GBNF and regular expressions, on the vocabulary of MODEL (of
which nothing else is read):

- compiling the form, in milliseconds;
- ours, a token: which tokens may come, choosing one of them with the default sampling from random
  logits, and taking it. The median, and the 99th percentile of all;
- llama.cpp's, a token: ``llama_sampler_apply`` of its grammar sampler to all tokens, without the
  choosing, where it reads the same grammar; the median.

What both say are texts without sense, so that each token leads to another place in the form. The
first line is what is made once for a model.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from llama4_edge.chat.forms import Form
from llama4_edge.chat.structure import Structure, Structures
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.runtime.bindings.candidates import CANDIDATE
from llama4_edge.runtime.bindings.sampler import DrySamplers, Sampler
from llama4_edge.runtime.files.model_file import check_model_file
from llama4_edge.runtime.sampling import Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
        "address": {"$ref": "#/$defs/address"},
    },
    "required": ["name", "age", "email", "tags", "address"],
    "additionalProperties": False,
    "$defs": {
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"enum": ["Rome", "Oslo"]}},
            "required": ["street", "city"],
            "additionalProperties": False,
        }
    },
}
JSON = r"""
root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = """
root ::= (expr "=" ws term "\\n")+
expr ::= term ([-+*/] term)*
term ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num ::= [0-9]+ ws
ws ::= [ \\t\\n]*
"""
FORMS = {
    "JSON Schema": Form("schema", PERSON, "schema"),
    "any JSON object": Form("schema", {"type": "object"}, "schema"),
    "GBNF, JSON": Form("grammar", JSON, "grammar"),
    "GBNF, arithmetic": Form("grammar", ARITHMETIC, "grammar"),
    "GBNF, sentences": Form("grammar", 'root ::= ([^.\\n]+ "." " "?)+', "grammar"),
    "regex, address": Form("regex", r"[a-z0-9._]+@[a-z0-9]+(\.[a-z]+)+", "regex"),
    "regex, words": Form("regex", r"(\w+ )+", "regex"),
}


def main() -> None:
    """Measure each form, and print a line for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--peer-tokens", type=int, default=20)
    arguments = parser.parse_args()
    info = check_model_file(arguments.model)
    vocabulary = Vocabulary(info.gguf.metadata)
    structures = Structures(vocabulary, info.eog_ids)
    begin = time.perf_counter()
    structures.of(Form("regex", "a", "regex"))
    print(f"once for a model of {len(vocabulary):,} tokens: {time.perf_counter() - begin:.2f} s")
    vocab = vocabulary_of(arguments.model)
    print(f"{'':<18} {'compile':>8} {'ours':>8} {'99%':>8} {'llama.cpp':>10}   ms")
    for name, form in FORMS.items():
        begin = time.perf_counter()
        structure = structures.of(form)
        compiled = time.perf_counter() - begin
        times = sorted(ours(structure, len(vocabulary), info.eog_ids, arguments.tokens))
        peer = "-"
        if form.kind == "grammar":
            peer = f"{statistics.median(theirs(vocab, form.value, arguments.peer_tokens)):.1f}"
        print(
            f"{name:<18} {compiled * 1e3:8.1f} {statistics.median(times):8.3f} "
            f"{times[len(times) * 99 // 100]:8.2f} {peer:>10}",
            flush=True,
        )


def ours(structure: Structure, count: int, ends: Collection[int], tokens: int) -> list[float]:
    """Milliseconds of each token."""
    rng = np.random.default_rng(0)
    made = 0
    times: list[float] = []
    while made < tokens:
        constraint = structure.constraint()
        sampler = Sampler(llama_cpp, DrySamplers(llama_cpp, None), count, Sampling(seed=made), [])
        while made < tokens:
            logits = rng.standard_normal(count, np.float32)
            logits[list(ends)] = -100.0  # so that the text goes on where it may
            begin = time.perf_counter()
            token = sampler.choose(logits, constraint.mask())
            assert token is not None
            constraint.accept(token)
            times.append((time.perf_counter() - begin) * 1e3)
            made += 1
            if token in ends or constraint.is_complete:
                break
        sampler.close()
    return times


def vocabulary_of(path: Path) -> Any:
    """llama.cpp's vocabulary of a model."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    return llama_cpp.llama_model_get_vocab(model)


def theirs(vocab: Any, grammar: str, tokens: int) -> list[float]:
    """Milliseconds in which llama.cpp says for all tokens whether they may come, for each token."""
    rng = np.random.default_rng(0)
    count = llama_cpp.llama_vocab_n_tokens(vocab)
    times: list[float] = []
    while len(times) < tokens:
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
        while len(times) < tokens:
            candidates = np.zeros(count, CANDIDATE)
            candidates["id"] = np.arange(count)
            data = ctypes.cast(candidates.ctypes.data, llama_cpp.llama_token_data_p)
            array = llama_cpp.llama_token_data_array(
                data=data, size=count, selected=-1, sorted=False
            )
            begin = time.perf_counter()
            llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
            times.append((time.perf_counter() - begin) * 1e3)
            allowed = candidates["id"][candidates["logit"] > -np.inf]
            open_ended = [t for t in allowed if not llama_cpp.llama_vocab_is_eog(vocab, int(t))]
            if not open_ended:
                break
            llama_cpp.llama_sampler_accept(sampler, int(rng.choice(open_ended)))
        llama_cpp.llama_sampler_free(sampler)
    return times


if __name__ == "__main__":
    main()
