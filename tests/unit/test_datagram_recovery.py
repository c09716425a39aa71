"""Round trips, loss, needless retransmissions, timeouts, windows: the numbers of the RFCs."""

from __future__ import annotations

import pytest

from msgservice.core.datagram.congestion import NewReno, Pacer
from msgservice.core.datagram.limits import DatagramLimits
from msgservice.core.datagram.recovery import Recovery, RoundTrip

UNIT = 1200


def recovery(jitter: float = 0.0, sent: int = 0, every: float = 0.001) -> Recovery:
    made = Recovery(lambda: jitter)
    for number in range(sent):
        made.on_sent(number * every, UNIT, (number,))
    return made


def test_the_round_trip_is_estimated_as_rfc_6298_says() -> None:
    trip = RoundTrip()
    assert 1.0 == trip.timeout
    trip.sample(0.1)
    assert (0.1, 0.05) == (trip.smoothed, trip.variation)
    trip.sample(0.2)
    assert trip.variation == pytest.approx(0.05 * 3 / 4 + 0.1 / 4)
    assert trip.smoothed == pytest.approx(0.1 * 7 / 8 + 0.2 / 8)
    assert trip.timeout == pytest.approx(trip.smoothed + 4 * trip.variation + 0.025)


def test_the_delay_of_the_other_side_is_taken_off_but_never_below_the_smallest() -> None:
    trip = RoundTrip()
    trip.sample(0.1)
    trip.sample(0.125, 0.025)
    assert trip.latest == pytest.approx(0.1)
    trip.sample(0.11, 0.025)
    assert trip.latest == pytest.approx(0.11)


def test_three_later_packets_make_one_lost() -> None:
    made = recovery(sent=6, every=0.0)
    arrived, lost, _ = made.receive_ranges([(2, 3)], 0.0, 0.1)
    assert 2 == len(arrived)
    assert [] == lost
    _, lost, _ = made.receive_ranges([(2, 4)], 0.0, 0.1)
    assert [(0,)] == [content for _, _, content in lost]


def test_nine_eighths_of_a_round_trip_make_one_lost() -> None:
    made = recovery(sent=2, every=0.0)
    _, lost, _ = made.receive_ranges([(2, 2)], 0.0, 0.1)
    assert [] == lost
    assert made.loss_at == pytest.approx(0.1125)
    assert [] == made.detect(0.1124)
    assert 1 == len(made.detect(0.1126))
    assert made.loss_at is None


def test_a_late_acknowledgement_proves_a_loss_wrong_and_raises_the_thresholds() -> None:
    made = recovery(sent=10, every=0.0)
    _, lost, _ = made.receive_ranges([(6, 6)], 0.0, 0.1)
    assert 3 == len(lost)
    arrived, _, spurious = made.receive_ranges([(1, 6)], 0.0, 0.15)
    assert (2, 3) == (len(arrived), spurious)
    assert 6 == made.packet_threshold
    assert made.time_threshold > 1.5

    assert ([], 0) == (made.receive_ranges([(1, 6)], 0.0, 0.16)[0], made._prove([(1, 6)], 0.16))


def test_a_packet_that_was_never_sent_cannot_be_acknowledged() -> None:
    made = recovery(sent=2)
    with pytest.raises(ValueError, match="never sent"):
        made.receive_ranges([(1, 3)], 0.0, 0.1)
    assert 2 == len(made.in_flight)


def test_an_acknowledgement_of_a_vast_range_costs_no_more_than_what_is_in_flight() -> None:
    made = recovery()
    made.next_number = 2**60
    made.on_sent(0.0, UNIT, ("only",))
    arrived, _, _ = made.receive_ranges([(1, 2**60)], 0.0, 0.1)
    assert 1 == len(arrived)


def trips(made: Recovery, *times: tuple[float, float]) -> None:
    """Let packets leave and be acknowledged alone, at these times."""
    for sent_at, now in times:
        number = made.next_number
        made.on_sent(sent_at, UNIT, (number,))
        made.receive_ranges([(number, number)], 0.0, now)


def test_a_round_trip_that_no_path_has_counts_only_when_another_confirms_it() -> None:
    made = recovery()
    trips(made, (0.0, 0.1))
    made.on_sent(1.0, UNIT, ("held back",))
    made.on_sent(1.0, UNIT, ("held back too",))
    made.timeouts = 10  # nothing of ours was late: we asked once a minute
    made.last_sent_at = 290.0
    made.receive_ranges([(2, 2)], 0.0, 300.0)
    made.receive_ranges([(2, 3)], 0.0, 300.0)
    assert 0.1 == made.round_trip.smoothed

    made.timeouts = 10
    trips(made, (301.0, 316.0))
    assert made.round_trip.smoothed > 1.0


def test_a_doubt_that_a_short_round_trip_refuted_confirms_nothing() -> None:
    made = recovery()
    trips(made, (0.0, 0.1))
    for begin in (1.0, 400.0):
        made.timeouts = 10
        trips(made, (begin, begin + 15.0), (begin + 20.0, begin + 20.125))
    assert made.round_trip.smoothed == pytest.approx(0.1, rel=0.1)


def test_what_left_before_our_own_timers_stood_still_measures_nothing() -> None:
    made = recovery()
    trips(made, (0.0, 0.1))
    # Whichever comes first once we go on: the acknowledgement, or the timer.
    trips(made, (1.0, 6.0))
    made.on_sent(7.0, UNIT, ("in flight",))
    made.receive_timeout(13.0)
    made.on_sent(13.0, UNIT, ("probe",))
    made.receive_ranges([(3, 3)], 0.0, 13.0)
    assert 0.1 == made.round_trip.smoothed


def test_the_timeout_probes_first_then_doubles_with_jitter_to_a_minute() -> None:
    made = recovery(jitter=0.5, sent=1)
    made.round_trip.sample(0.1)
    assert made.timeout_at() == pytest.approx(0.1 + 0.2 + 0.025)
    waits = []
    for _ in range(10):
        made.receive_timeout(0.2)
        due = made.timeout_at()
        assert due is not None
        waits.append(due)
    first = 0.325 * 2 * 1.25
    assert [min(first * 2**n, 60.0) for n in range(10)] == pytest.approx(waits)
    made.receive_ranges([(1, 1)], 0.0, 0.2)
    assert 0 == made.timeouts
    assert made.timeout_at() is None


def full_path() -> RoundTrip:
    """Round trips that have grown: packets wait before a bottleneck."""
    trip = RoundTrip()
    for rtt in (0.1, *[0.2] * 20):
        trip.sample(rtt)
    return trip


def empty_path() -> RoundTrip:
    trip = RoundTrip()
    trip.sample(0.1)
    return trip


def test_a_loss_that_the_reduction_did_not_lessen_is_put_up_with_for_some_round_trips() -> None:
    window = NewReno(UNIT, 10**9)
    window.on_lost(UNIT, 1, 1.0, 2.0, empty_path())
    assert 5 * UNIT == window.window
    assert window.watches
    window.on_outcome(3, 0, 2.1)
    window.on_outcome(0, 1, 2.1)
    window.on_lost(UNIT, 1, 2.1, 2.2, empty_path())
    assert 10 * UNIT == window.window
    assert window.slow_start

    window.on_outcome(0, 3, 2.3)
    window.on_lost(3 * UNIT, 3, 2.3, 2.5, empty_path())
    assert 10 * UNIT == window.window
    window.on_lost(UNIT, 1, 9.0, 9.1, empty_path())  # and then it is tried again
    assert 5 * UNIT == window.window


def test_a_share_above_a_third_takes_off_what_exceeds_it() -> None:
    window = NewReno(UNIT, 10**9)
    window.on_lost(UNIT, 1, 1.0, 2.0, empty_path())
    window.on_lost(UNIT, 1, 2.1, 2.2, empty_path())
    for _ in range(200):
        window.on_outcome(1, 1, 2.3)  # half is lost
    window.on_lost(UNIT, 1, 2.3, 2.5, empty_path())
    assert window.window == pytest.approx(7.5 * UNIT, rel=0.05)


def test_a_loss_after_sixteen_packets_that_arrived_halves_again() -> None:
    window = NewReno(UNIT, 10**9)
    window.on_lost(UNIT, 1, 1.0, 2.0, empty_path())
    window.on_outcome(16, 0, 2.1)
    assert not window.watches
    window.on_lost(UNIT, 1, 2.2, 2.3, empty_path())
    assert 2.5 * UNIT == window.window


def test_a_queue_makes_every_loss_one_of_a_full_path() -> None:
    window = NewReno(UNIT, 10**9)
    window.on_lost(UNIT, 1, 1.0, 2.0, empty_path())
    window.on_lost(UNIT, 1, 2.1, 2.2, full_path())
    assert 2.5 * UNIT == window.window
    assert not window.watches


def test_the_window_doubles_then_halves_at_most_once_per_round_trip() -> None:
    window = NewReno(UNIT, 10**9)
    assert 10 * UNIT == window.window
    window.in_flight = 10 * UNIT
    window.on_acknowledged(10 * UNIT, 1.0)
    assert 20 * UNIT == window.window
    window.on_lost(UNIT, 1, 1.5, 2.0, full_path())
    window.on_lost(UNIT, 1, 1.9, 2.1, full_path())
    assert 10 * UNIT == window.window
    window.on_acknowledged(5 * UNIT, 1.9)  # left before the reduction
    assert 10 * UNIT == window.window
    window.on_acknowledged(10 * UNIT, 2.5)
    assert 11 * UNIT == window.window
    window.on_lost(UNIT, 1, 2.6, 3.0, full_path())
    assert 5.5 * UNIT == window.window


def test_a_reduction_that_was_needless_is_undone() -> None:
    window = NewReno(UNIT, 10**9)
    window.on_lost(2 * UNIT, 2, 1.0, 2.0, full_path())
    window.on_spurious(1)
    assert 5 * UNIT == window.window
    window.on_spurious(1)
    assert 10 * UNIT == window.window
    assert window.slow_start


def test_timeouts_in_a_row_leave_two_datagrams_and_the_window_has_a_limit() -> None:
    window = NewReno(UNIT, 20 * UNIT)
    window.on_acknowledged(100 * UNIT, 1.0)
    assert 20 * UNIT == window.window
    window.on_timeouts(2.0)
    assert 2 * UNIT == window.window


def test_a_round_trip_that_grows_ends_the_doubling_before_a_loss() -> None:
    window = NewReno(UNIT, 10**9)
    number = 0
    for rtt in (0.05, 0.05, *([0.08] * 12)):
        for _ in range(10):
            number += 1
            window.on_rtt(rtt, number, number + 10)
    assert not window.slow_start


def test_the_pacer_lets_ten_datagrams_go_and_then_what_the_rate_says() -> None:
    pacer = Pacer(UNIT)
    assert 10 * UNIT == pacer.budget(0.0, 100 * UNIT, 0.1, slow_start=False)
    pacer.spend(10 * UNIT)
    assert 0 == pacer.budget(0.0, 100 * UNIT, 0.1, slow_start=False)
    assert pacer.next_at(UNIT) == pytest.approx(0.001)
    assert pacer.budget(0.004, 100 * UNIT, 0.1, slow_start=False) == pytest.approx(5 * UNIT)


@pytest.mark.parametrize(
    ("field", "value"),
    [("datagram_bytes", 511), ("datagram_bytes", 65_508), ("message_bytes", 0), ("peers", 0),
     ("keepalive", -1.0), ("idle_timeout", 0.0), ("window_messages", 0)],
)  # fmt: skip
def test_a_limit_that_cannot_work_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        DatagramLimits(**{field: value})  # type: ignore[arg-type]  # by name
