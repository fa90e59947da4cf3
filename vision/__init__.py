"""Pictures to tiles, and tiles to features: what the vision tower of Llama 4 is shown."""
