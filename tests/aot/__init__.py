"""Tests of compiled programs that never run: for TPUs, without any, and for this CPU."""
