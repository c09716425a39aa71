"""Any history of two endpoints of acknowledged UDP: every token comes back, and nothing stands.

Hypothesis chooses what both sides and the path between them do; `datagram_paths` drives them. That
whoever attacks changes nothing is `test_datagram_hostile`'s.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from msgservice.core.datagram.limits import DatagramLimits
from msgservice.errors import LimitReached, MessageTooLarge
from tests.simulation.datagram_paths import Host, Path, World

SIDES = st.sampled_from([0, 1])
# Small, so that a short history reaches every limit; the second set takes less than the first.
LIMITS = (
    DatagramLimits(
        datagram_bytes=700,
        message_bytes=6000,
        window_messages=12,
        window_bytes=12_000,
        queue_messages=60,
        queue_bytes=60_000,
        idle_timeout=90.0,
    ),
    DatagramLimits(
        datagram_bytes=512,
        message_bytes=1500,
        window_messages=5,
        window_bytes=3000,
        queue_messages=60,
        queue_bytes=60_000,
        idle_timeout=90.0,
        keepalive=7.0,
    ),
)
SIZES = st.sampled_from([0, 1, 30, 400, 700, 1500, 1501, 5900, 6000, 6001])
# As long as both may need once the path is whole: a handshake, and timeouts of a minute.
SETTLING = 3600.0


def answer_to(body: bytes) -> bytes | None:
    """What every handler answers; a ValueError is an answer too."""
    kind = len(body) % 4
    if kind == 0:
        return None
    if kind == 1:
        raise ValueError("no")
    return body[:20] if kind == 2 else (body * 3)[:1400]


class TwoEndpoints(RuleBasedStateMachine):
    """See the module."""

    @initialize(
        seed=st.integers(0, 2**16),
        patience=st.sampled_from([None, 4.0]),
        retries=st.integers(0, 3),
        ordered=st.booleans(),
        limits=st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1)]),
    )
    def begin(
        self,
        seed: int,
        patience: float | None,
        retries: int,
        ordered: bool,
        limits: tuple[int, int],
    ) -> None:
        """Two hosts that do not know each other."""
        self.world = World(seed)
        self.hosts: list[Host] = []
        for index in (0, 1):
            host = self.world.host(
                index + 1,
                limits=LIMITS[limits[index]],
                patience=patience,
                retries=retries,
                ordered=ordered,
            )
            host.handler = answer_to
            self.hosts.append(host)
        self.ordered = ordered
        self.count = 0
        self.sent: list[list[bytes]] = [[], []]  # and not handed back by a close, nor forgotten
        self.closed: list[list[object]] = [[], []]

    # --- what happens

    @rule(side=SIDES, sizes=st.lists(SIZES, min_size=1, max_size=12))
    def send(self, side: int, sizes: list[int]) -> None:
        """A side sends messages, each unlike every other, and too many or too large ones."""
        source, to = self.hosts[side], self.hosts[1 - side]
        if source.stands:
            return
        for size in sizes:
            self.count += 1
            body = (b"%d:" % self.count).ljust(size, b".")
            try:
                source.send(to.address, body)
            except (LimitReached, MessageTooLarge):
                continue
            self.sent[side].append(body)
        source.turn()

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.03, 0.3, 2.0, 11.0, 70.0, 400.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.world.run(seconds)

    @rule(
        loss=st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0]),
        jitter=st.sampled_from([0.0, 0.05, 3.0]),
        duplicate=st.sampled_from([0.0, 0.3]),
        damage=st.sampled_from([0.0, 0.1]),
        side=st.sampled_from([0, 1, None]),
    )
    def change_path(
        self, loss: float, jitter: float, duplicate: float, damage: float, side: int | None
    ) -> None:
        """One direction, or both, get better or worse."""
        path = Path(loss=loss, jitter=jitter, jitter_share=0.4, duplicate=duplicate, damage=damage)
        for source in (0, 1) if side is None else (side,):
            to = 1 - source
            self.world.paths[self.hosts[source].address, self.hosts[to].address] = path

    @rule(side=SIDES, seconds=st.sampled_from([0.0, 0.05, 3.0, 100.0]))
    def slow_down(self, side: int, seconds: float) -> None:
        """A handler takes its time from now on."""
        self.hosts[side].delay_handling = seconds

    @rule(side=SIDES)
    def restart(self, side: int) -> None:
        """A side loses its state, and forgets what it had sent."""
        self.hosts[side].restart()
        self._forget(side)

    @rule(side=SIDES)
    def close(self, side: int) -> None:
        """A side ends the session."""
        host, other = self.hosts[side], self.hosts[1 - side]
        if not host.stands:
            self.closed[side] += host.endpoint.close(other.address, self.world.now)
            host.turn()

    @rule(side=SIDES, seconds=st.sampled_from([0.5, 20.0, 300.0]))
    def stand_still(self, side: int, seconds: float) -> None:
        """A process gets no time for a while."""
        host = self.hosts[side]
        if not host.stands:
            host.stand_still(seconds)

    # --- what must be so

    def _returned(self, side: int) -> list[object]:
        host = self.hosts[side]
        return [
            *host.settled,
            *host.replies,
            *(token for _, tokens, _ in host.failed for token in tokens),
            *(token for token, _, _ in host.too_large),
            *self.closed[side],
        ]

    def _forget(self, side: int) -> None:
        returned = set(self._returned(side))
        self.sent[side] = [body for body in self.sent[side] if body in returned]

    @invariant()
    def every_token_comes_back_once_at_most(self) -> None:
        for side in (0, 1):
            twice = [token for token, n in Counter(self._returned(side)).items() if n > 1]
            assert not twice, "came back twice"

    @invariant()
    def no_message_is_handled_twice_in_one_session(self) -> None:
        for host in self.hosts:
            handled = Counter(zip(host.sessions, host.handled, strict=True))
            assert max(handled.values(), default=1) == 1

    @invariant()
    def an_ordered_session_hands_on_in_order(self) -> None:
        if self.ordered:
            for host in self.hosts:
                last: dict[object, int] = {}
                for session, body in zip(host.sessions, host.handled, strict=True):
                    number = int(body.split(b":")[0])
                    assert last.get(session, 0) < number
                    last[session] = number

    @invariant()
    def a_deadline_is_set_while_anything_is_open_or_waits(self) -> None:
        for host in self.hosts:
            if not host.stands and any(True for _ in host.endpoint.waiting()):
                assert host.endpoint.next_deadline() is not None

    def teardown(self) -> None:
        """Once the path is whole and handlers are quick, everything comes back."""
        if not hasattr(self, "world"):
            return
        self.world.paths.clear()
        for host in self.hosts:
            host.delay_handling = 0.0
        served = self.world.run(SETTLING, until=self._all_back)
        self.every_token_comes_back_once_at_most()
        self.no_message_is_handled_twice_in_one_session()
        self.an_ordered_session_hands_on_in_order()
        assert served, "something is open for ever"
        for side, host in enumerate(self.hosts):
            for body, (status, reply) in host.replies.items():
                assert isinstance(body, bytes)
                try:
                    expected = (1, answer_to(body))
                except ValueError as error:
                    expected = (2, str(error).encode())
                assert expected == (status, reply)
            assert set(self.sent[side]) <= set(self._returned(side))

    def _all_back(self) -> bool:
        for side, host in enumerate(self.hosts):
            if host.stands or any(True for _ in host.endpoint.waiting()):
                return False
            if not set(self.sent[side]) <= set(self._returned(side)):
                return False
        return True


TestTwoEndpoints = TwoEndpoints.TestCase
TestTwoEndpoints.settings = settings(max_examples=100, stateful_step_count=40)
