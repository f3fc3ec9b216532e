"""The teacher's answers to the stream, computed once and read by every later trial.

`key` says which answers belong together, `records` how one is written, `parts` where they lie, and `answers` is what
the training loop asks.
"""
