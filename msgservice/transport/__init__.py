"""What carries TRANSFER there and ACK back. One file for each URL scheme."""
