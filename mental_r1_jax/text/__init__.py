"""Strings only: the five-stage grammar, chat prompts, and the tokenizer with its byte offsets."""
