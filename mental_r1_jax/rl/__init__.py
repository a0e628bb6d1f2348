"""The mathematics of CRPO: arrays in, arrays out, no network and no text."""
