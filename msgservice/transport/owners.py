"""The owner of a connection, which keeps account of it, and the connection as an owner uses it.

A connector (`transport.dialling`) owns what it dialled, a listener what it accepted; whatever
carries the frames tells its owner the same.
"""

from __future__ import annotations

from typing import Protocol


class Owned(Protocol):
    """A connection, as its owner uses it: an `IChannel` that is Twisted's `IProtocol` as well."""

    @property
    def peer_address(self) -> str:
        """See `IChannel`."""

    @property
    def refusal(self) -> str | None:
        """Why it ended, where that does not pass by itself (`IChannelUser`)."""

    def close(self) -> None:
        """See `IChannel`."""

    def abort(self) -> None:
        """See `IChannel`."""


class ChannelOwner(Protocol):
    """The owner of a connection."""

    def channel_identified(self, channel: Owned) -> None:
        """The peer has said who it is; see `IChannel.identified`."""

    def channel_established(self, channel: Owned) -> None:
        """The peer is known; see `IChannel.established`."""

    def channel_gone(self, channel: Owned, reason: str) -> None:
        """The connection has gone, whether it ever opened or not."""


class Nobody:
    """The owner of a connection of which nobody keeps account."""

    def channel_identified(self, channel: Owned) -> None:
        """See `ChannelOwner`."""

    def channel_established(self, channel: Owned) -> None:
        """See `ChannelOwner`."""

    def channel_gone(self, channel: Owned, reason: str) -> None:
        """See `ChannelOwner`."""
