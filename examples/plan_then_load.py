"""Ask where a model would go, then load it there.

    python examples/plan_then_load.py demo/out/llama-4-tiny-int4.gguf

`make demo` makes that file.
"""

from __future__ import annotations

import sys

import llama4_edge


def main(path: str) -> None:
    """Print the plan for the longest context that fits, device by device; then follow it."""
    plan = llama4_edge.plan(path, n_ctx="max")
    print(plan)
    for share in plan.devices:
        print(f"{share.name}: {share.used_bytes:,} bytes, {share.left_bytes:,} left")
    if not plan.fits:
        sys.exit("it does not fit")
    with llama4_edge.Model(path, plan=plan) as model:
        assert model.plan == plan
        print(model.chat("Who are you?", temperature=0).text)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
