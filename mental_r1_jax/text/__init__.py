"""Strings only: the grammar of stages, chat prompts, and the tokenizer with its byte offsets."""
