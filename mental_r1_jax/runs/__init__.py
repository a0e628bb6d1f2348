"""A run: its folder, resuming, the log of its steps, and what its loops share."""
