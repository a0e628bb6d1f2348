"""The Hugging Face folder of a run: its files, its model card, and its verification."""
