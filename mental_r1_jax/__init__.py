"""Mental-R1 in JAX: stage-wise reasoning about mental health, trained by CRPO."""

__version__ = "0.1.0"
