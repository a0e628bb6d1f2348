"""The compiled programs of a step, and compiling them before they are called."""
