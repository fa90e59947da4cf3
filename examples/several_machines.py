"""Share a model with other machines.

On each of the others (there is no password and no encryption, so only in a network you trust):

    llama4 worker --host 192.168.0.7

Then here; a worker on this very machine (`llama4 worker` alone) does for a trial:

    python examples/several_machines.py demo/out/llama-4-tiny-int4.gguf 127.0.0.1:50052

`make demo` makes that file.
"""

from __future__ import annotations

import sys

import llama4_edge


def main(path: str, *workers: str) -> None:
    """Let the planner share the layers out, say how, and answer."""
    with llama4_edge.Model(path, workers=workers) as model:
        assert model.plan is not None
        for device in model.plan.devices:
            print(
                f"{device.name} at {device.device.endpoint or 'home'}: {device.used_bytes:,} bytes"
            )
        print(model.chat("What is 20 + 30?", temperature=0).text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
