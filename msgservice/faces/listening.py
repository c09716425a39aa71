"""The start of a service that listens: what its parent is told of a port that cannot be had.

How each face listens is its own; the chassis, whose server runs in steps, starts in its `service`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure


class ListeningService(Service, ABC):
    """A service that listens from its start on.

    Under a parent it listens before privileges are dropped (`privilegedStartService`), and what
    keeps it from that is raised there: it ends `twistd`, which would serve nobody.
    """

    _log: Logger
    _is_begun_early = False

    @abstractmethod
    def _begin(self) -> Deferred[Any]:
        """Begin to listen; fails, or raises, with why it cannot."""

    def privilegedStartService(self) -> None:
        """Begin. Raises `CannotListen`, and what else keeps it from listening."""
        if self.running:
            return
        failures: list[Failure] = []
        is_starting = True

        def failed(failure: Failure) -> None:
            if is_starting:
                failures.append(failure)
            else:  # of an endpoint that took its time
                self._not_begun(failure)

        self._begin().addErrback(failed)
        is_starting = False
        for failure in failures:
            self.running = False
            failure.raiseException()
        self._is_begun_early = True

    def startService(self) -> None:
        """Begin, if `privilegedStartService` has not; a failure is logged."""
        is_begun, self._is_begun_early = self._is_begun_early, False
        if not (is_begun and self.running):
            self._begin().addErrback(self._not_begun)

    def _not_begun(self, failure: Failure) -> None:
        self._log.failure("{name} cannot begin", failure, name=type(self).__name__)
