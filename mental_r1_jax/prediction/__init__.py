"""Generating and reading answers: to labelled posts, to be scored, and to any others in bulk."""
