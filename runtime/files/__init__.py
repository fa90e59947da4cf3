"""What a model file holds, and whether it is sound."""
