"""Studies: methods x seeds x varied keys, run as ordinary runs and compared."""
