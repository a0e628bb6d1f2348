"""Readers of files given anything at all: they read it, or say in one error why not."""
