"""Acknowledged UDP, sans-IO: `endpoint` is all that one socket says and hears."""
