"""From picture archives to a trained, measured and published hub folder.

Run from a checkout: `python -m train`.
"""
