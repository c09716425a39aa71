"""HTTP/1.1 over a byte stream, bounded in size and time: requests in, answers out."""
