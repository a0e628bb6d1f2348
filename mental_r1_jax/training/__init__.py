"""The optimizer, the pure train step, checkpoints and metrics."""
