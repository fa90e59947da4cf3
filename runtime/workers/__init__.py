"""Other machines that lend their devices over ggml's RPC, and simulated GPUs."""
