"""A peer that checks any implementation of a client or receiver: `python -m tests.conformance`."""
