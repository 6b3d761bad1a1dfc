"""Dress rehearsal: every stage at full size with random weights, before the real run pays for it.

    make rehearsal MODEL=gpt2-large

`models` makes the model and its data up, `parts` says what is measured and how often the real run
does it, `measures` measures one part in a process of its own, `__main__` runs them and writes.
"""
