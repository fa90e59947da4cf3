"""What there is to try everything on: a trained model, and checkpoints of random weights."""
