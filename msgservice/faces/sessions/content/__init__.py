"""Codecs of sessions: what content may be, and how it becomes bytes."""
