"""One file for each command: what may be asked, what is done, what is shown."""

# Keys of click's context.meta: what the group, and the line that an error becomes, must know.
JSON, VERBOSE = "llama4_edge.json", "llama4_edge.verbose"
