"""One decoder for every dense family, its attention, and the Hugging Face file format."""
