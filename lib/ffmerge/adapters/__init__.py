"""Adapters of peft on shared sublayers: whom they reach is said, and none is folded in."""
