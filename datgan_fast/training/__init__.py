"""One training run: its options, networks, iterations, folder and checkpoints."""
