"""The command line: an edge, which only calls the public API."""
