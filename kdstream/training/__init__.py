"""The training loop, its optimiser, processes and logs."""
