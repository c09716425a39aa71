"""Sessions between a central and its remotes, each with a server and a client of its own."""
