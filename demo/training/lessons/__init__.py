"""What the model is taught and examined on: one module a subject, and their mixture."""
