"""Tests of the decoder, its attention, and the Hugging Face file format."""
