"""What a run will take on TPUs, known before one is rented: memory, traffic and time of a step."""
