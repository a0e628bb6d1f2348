"""Data sets: specifications, CSV checks, the TFDS builder, and the resumable prompt order."""
