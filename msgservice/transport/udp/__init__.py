"""The protocol over acknowledged UDP, and `DatagramPeer`, which is usable alone."""
