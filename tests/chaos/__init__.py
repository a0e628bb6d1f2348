"""Runs that are killed, stopped and damaged at random, and must end as the undisturbed run does."""
