"""What this machine has, what fits where, and what the model says."""
