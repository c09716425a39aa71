"""A chassis server as a Twisted service: for `twistd`, and for programs made of services."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from msgservice.clock import timed
from msgservice.faces.axon.scheduler import scheduler_for
from msgservice.faces.chassis.server import ServerCore


class ChassisService(Service):
    """Runs `server` from the service's start to its stop. A server runs once; so does this.

    It listens before privileges are dropped (`privilegedStartService`). A port that cannot be
    listened on raises `CannotListen` there, which ends `twistd`.
    """

    _log = Logger()

    def __init__(self, server: ServerCore, reactor: IReactorTime) -> None:
        self.server = server
        self._reactor = timed(reactor)

    def privilegedStartService(self) -> None:
        """Listen."""
        super().privilegedStartService()
        self._start()

    def startService(self) -> None:
        """Listen, if `privilegedStartService` was not called."""
        super().startService()
        self._start()

    def stopService(self) -> Deferred[None]:
        """Stop listening and close every connection; fires when all are closed.

        At the latest after the server's `limits.stop_deadline`.
        """
        super().stopService()
        return self.server.stop()

    def _start(self) -> None:
        if self.server.started:
            return
        failures: list[Failure] = []
        starting = True

        def failed(failure: Failure) -> None:
            if starting:
                failures.append(failure)
            else:  # an endpoint that took its time, or a start from within a component's step
                self._log.failure("{server} cannot listen", failure, server=self.server.name)

        self.server.when_listening().addErrback(failed)
        scheduler = scheduler_for(self._reactor)
        # Within `enter` the server runs at once, so that what cannot be listened on is known here.
        scheduler.enter(self.server.activate, scheduler)
        starting = False
        for failure in failures:
            failure.raiseException()
