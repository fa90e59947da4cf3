"""This machine: its cores, its memory, its page cache, and waiting for threads."""
