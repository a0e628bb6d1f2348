"""Opening what a verb works on: the model and its weights, and the mesh of the devices."""
