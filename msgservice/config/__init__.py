"""The configuration file: one frozen `Config`, checked whole."""

from __future__ import annotations

from msgservice.config.config import Config

__all__ = ["Config"]
