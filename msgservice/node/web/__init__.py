"""The web listener of a node: who asks, what is at which path, and what is said of it."""
