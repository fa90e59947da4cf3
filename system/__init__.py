"""What does this machine have? Cores, memory, page cache, locks, and writing a file in one step."""
