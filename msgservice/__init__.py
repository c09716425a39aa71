"""msgservice: hand it a message and it is never lost."""
