"""Programs that show what msgservice does; each is run by a test."""
