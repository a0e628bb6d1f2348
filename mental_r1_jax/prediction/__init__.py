"""Generating and reading answers for labelled posts, for validation and evaluation."""
