"""How the model in demo/Llama-4-Tiny is trained and examined."""

from pathlib import Path

MODEL = Path(__file__).resolve().parents[1] / "Llama-4-Tiny"
OUT = MODEL.with_name("out")
