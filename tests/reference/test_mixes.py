"""llama.cpp's recipes give the types that llama-quantize gives, to whole Scout and Maverick too.

Its dry run says them without reading a weight, so that files with nothing but a header will do.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from demo.checkpoint import EIGHT_EXPERTS, ODD, SCOUT_LIKE, TIED, Geometry
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.quant import RECIPES, assign_types
from llama4_edge.quant.mixes import LLAMA_CPP, TensorSpec
from tests.fixtures import MakeCheckpoint

# Says what llama-quantize's dry run logs, for each file type, without and with a matrix.
DRY_RUN = """
import ctypes, json, sys
import llama_cpp
path, *numbers = sys.argv[1:]
text = []
log = llama_cpp.llama_log_callback(lambda level, line, user: text.append(line))
llama_cpp.llama_log_set(log, None)
entry = llama_cpp.llama_model_imatrix_data
one = (ctypes.c_float * 1)(1.0)
matrix = (entry * 2)(entry(b"none", ctypes.cast(one, ctypes.POINTER(ctypes.c_float)), 1), entry())
said = {}
for number in map(int, numbers):
    for imatrix in (False, True):
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.dry_run = number, 1, True
        if imatrix:
            params.imatrix = matrix
        text.clear()
        assert llama_cpp.llama_model_quantize(path.encode(), b"", ctypes.byref(params)) == 0
        said[f"{number} {imatrix}"] = b"".join(text).decode()
print(json.dumps(said))
"""
LINE = re.compile(
    r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\w+), size = .*?(?:\((\w+)\))?$", re.M
)

DEEP = replace(SCOUT_LIKE, layers=24, experts=2, heads=4, vision=None, shards=1, hidden=64)
MODELS: dict[str, Geometry | None] = {
    "scout": None,
    "maverick": None,
    # Of other counts of layers, of heads that share a key, and of rows that do not fit.
    "deep": DEEP,
    "one key": replace(DEEP, layers=17, kv_heads=1),
    "eight experts": replace(EIGHT_EXPERTS, layers=16, vision=None, hidden=64),
    "tied": replace(TIED, vision=None),
    "odd": replace(ODD, vision=None),
}


@pytest.mark.parametrize("model", MODELS)
def test_every_recipe_of_llama_cpp_has_its_types_with_and_without_a_matrix(
    model: str, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    geometry = MODELS[model]
    drawn = blueprint(make_checkpoint(geometry) if geometry else model, recipe="bf16")
    hparams = drawn.config.hparams
    path = drawn.write_header(tmp_path / "bf16.gguf")
    numbers = [str(number) for number, _, _ in LLAMA_CPP.values()]
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, path, *numbers], check=True, capture_output=True, text=True
    )
    specs = [TensorSpec(tensor.name, tensor.shape) for tensor in drawn.tensors]
    for key, text in json.loads(done.stdout).items():
        number, has_importance = key.split()
        (name,) = (name for name, (other, *_) in LLAMA_CPP.items() if str(other) == number)
        recipe = RECIPES[name.lower()]
        if recipe.needs_importance and has_importance == "False":
            continue  # llama-quantize says types, but writes none
        theirs = {it[1]: (it[3] or it[2]).upper() for it in LINE.finditer(text)}
        assigned = assign_types(
            recipe, specs, n_layer=hparams.n_layer, n_expert=hparams.n_expert,
            has_importance=has_importance == "True",
        )  # fmt: skip
        assert {it.tensor.name: it.type.name for it in assigned} == theirs, key
