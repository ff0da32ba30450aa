"""Is a model any good at one's own hospital? Labelled pictures go through it, and a report says how well it does.

Needs the extra ``check``. Training reads its collections with the same readers and computes the same figures.
"""
