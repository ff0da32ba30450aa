"""Attacks on the product, each a function that counts: the tests run few of them, `tests.benchmarks.campaign` many."""
