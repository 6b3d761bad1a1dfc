"""Attention sublayers: where their values and outputs are, and how they share (reviewer 2)."""
