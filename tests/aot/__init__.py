"""Tests of compiled programs that never run: for TPUs that are not there, and for this CPU."""
