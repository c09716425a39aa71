"""The protocol over TCP, TLS and Unix sockets."""
