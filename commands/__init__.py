"""One file for each command: what may be asked, what is done, what is shown."""

# Keys of click's context.meta: what the group, and the line that an error becomes, must know.
JSON, VERBOSE = "llama4_edge.json", "llama4_edge.verbose"
# The exit code of an error, where it is not 1.
TROUBLE = "llama4_edge.trouble"
