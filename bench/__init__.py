"""Measurements, printed as JSON and never asserted: how fast, how much memory, at what ratio.

`python -m bench` runs all of them; each module has its own command line.
"""
