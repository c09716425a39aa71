"""The throttle: how often a login may fail, by whom, and that strangers keep no user out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.identity.throttle import KNOWN_MAX, Throttle


def fail(throttle: Throttle, times: int, address: str, user: str, now: float = 0.0) -> None:
    for _ in range(times):
        throttle.failed(address, user, now)


def test_a_user_may_fail_ten_times_a_minute_from_an_address() -> None:
    throttle = Throttle()
    fail(throttle, 9, "10.0.0.1", "shop")
    assert throttle.allows("10.0.0.1", "shop", 0.0)
    fail(throttle, 1, "10.0.0.1", "shop", 1.0)
    assert not throttle.allows("10.0.0.1", "shop", 59.9)
    assert throttle.allows("10.0.0.1", "shop", 60.0)


def test_strangers_keep_no_user_out_from_elsewhere() -> None:
    throttle = Throttle()
    for number in range(300):
        fail(throttle, 10, f"10.0.{number // 100}.{number % 100}", "shop")
    assert throttle.allows("192.0.2.1", "shop", 0.0)


def test_an_address_may_fail_a_hundred_times_a_minute_whatever_users_it_says() -> None:
    throttle = Throttle()
    for number in range(100):
        assert throttle.allows("10.0.0.1", f"guess-{number}", 0.0)
        throttle.failed("10.0.0.1", f"guess-{number}", 0.0)
    assert not throttle.allows("10.0.0.1", "another", 0.0)
    assert throttle.allows("10.0.0.2", "another", 0.0)


def test_a_user_that_got_in_before_gets_in_again_from_an_address_that_strangers_use_up() -> None:
    throttle = Throttle()
    throttle.succeeded("10.0.0.1", "shop")
    fail(throttle, 200, "10.0.0.1", "guess")
    assert not throttle.allows("10.0.0.1", "other", 0.0)
    assert throttle.allows("10.0.0.1", "shop", 0.0)


def test_a_user_that_got_in_before_may_not_fail_more_often_than_others() -> None:
    throttle = Throttle()
    throttle.succeeded("10.0.0.1", "shop")
    fail(throttle, 10, "10.0.0.1", "shop")
    assert not throttle.allows("10.0.0.1", "shop", 0.0)


def test_a_login_that_went_well_does_not_give_an_address_new_tries() -> None:
    throttle = Throttle()
    fail(throttle, 100, "10.0.0.1", "guess")
    throttle.succeeded("10.0.0.1", "own account of whoever guesses")
    assert not throttle.allows("10.0.0.1", "shop", 0.0)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("unix", "this process", False),
    ],
)
def test_an_address_is_what_one_subscriber_cannot_choose(
    one: str, other: str, is_same: bool
) -> None:
    throttle = Throttle()
    fail(throttle, 100, one, "guess")
    assert is_same is not throttle.allows(other, "shop", 0.0)


def test_failures_are_remembered_in_a_bound() -> None:
    throttle = Throttle(failures_max=1000)
    for number in range(5000):
        throttle.failed(f"10.0.{number % 200}.1", f"guess-{number}", 0.0)
        assert throttle.records <= 1000
    assert len(throttle._pairs) <= 1000
    assert len(throttle._addresses) <= 200
    for number in range(KNOWN_MAX + 10):
        throttle.succeeded("10.0.0.1", f"user-{number}")
    assert KNOWN_MAX == len(throttle._known)


def test_nothing_is_left_of_failures_that_are_over() -> None:
    throttle = Throttle()
    fail(throttle, 50, "10.0.0.1", "shop")
    assert throttle.allows("10.0.0.1", "shop", 61.0)
    assert (0, 0, 0) == (throttle.records, len(throttle._pairs), len(throttle._addresses))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40), st.sampled_from(["one", "two"]), st.sampled_from(["a", "b", "c"])
        ),
        max_size=60,
    )
)
def test_who_may_try_is_counted_over_the_last_minute(tries: list[tuple[int, str, str]]) -> None:
    throttle = Throttle(pair_max=2, address_max=4)
    failures: list[tuple[int, str, str]] = []
    now = 0
    for seconds, address, user in tries:
        now += seconds
        recent = [failure for failure in failures if failure[0] > now - 60]
        of_pair = [failure for failure in recent if failure[1:] == (address, user)]
        of_address = [failure for failure in recent if failure[1] == address]
        assert (len(of_pair) < 2 and len(of_address) < 4) is throttle.allows(address, user, now)
        throttle.failed(address, user, now)
        failures.append((now, address, user))
