"""What is read and written over HTTP, as pydantic models: one file a protocol."""
