"""Transports carry TRANSFER there and ACK back. One file or folder for its schemes, or a plugin."""
