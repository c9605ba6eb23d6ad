"""Benchmarks of quality and of speed. Scripts to be run by hand; nothing in the package imports them."""
