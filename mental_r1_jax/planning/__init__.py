"""What a run will take on chips that are not there: memory, traffic and time of its programs."""
