"""Shared keys by number, for rotation; and what stands in their place where there are none."""

from __future__ import annotations

from collections.abc import Mapping

from msgservice.core.datagram import wire

KEY_BYTES = 32


class Keys:
    """Shared keys by number; the first is used for what this side begins, all are understood."""

    def __init__(self, keys: Mapping[int, bytes], aead: wire.AeadFactory) -> None:
        for number, key in keys.items():
            if type(number) is not int or not 1 <= number <= 255:
                raise ValueError(f"key id {number} must be an integer from 1 to 255")
            if len(key) != KEY_BYTES:
                raise ValueError(f"key {number} has {len(key)} bytes, must have {KEY_BYTES}")
        self.current = next(iter(keys))
        self._keys = dict(keys)
        self._aead = aead
        self._handshake = {number: wire.handshake_seals(aead, key) for number, key in keys.items()}

    def handshake_seal(self, number: int, letter: int) -> wire.Seal | None:
        """Return the seal for a letter of the handshake, None for an unknown key."""
        seals = self._handshake.get(number)
        return None if seals is None else seals[letter]

    def session_seal(self, number: int, role: int, initiator: bytes, responder: bytes) -> wire.Seal:
        """Return the seal of a session."""
        return wire.session_seal(self._aead, self._keys[number], role, initiator, responder)


class NoKeys:
    """Without a key: key id 0, a checksum."""

    current = 0
    _seal = wire.ChecksumSeal()

    def handshake_seal(self, number: int, letter: int) -> wire.Seal | None:
        """Return the checksum, for key id 0."""
        return None if number else self._seal

    def session_seal(self, number: int, role: int, initiator: bytes, responder: bytes) -> wire.Seal:
        """Return the checksum."""
        return self._seal
