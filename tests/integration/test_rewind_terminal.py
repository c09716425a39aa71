"""`msgservice rewind` at a terminal: what is seen of it while it goes on, at its end, on Ctrl-C."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.command import Command
from tests.integration.terminal import COLUMNS, Terminal

MANY = 8
BAR = re.compile(r"^(\d) messages copied [━╸╺]{40} \d:\d\d:\d\d$")


@contextmanager
def rewinding(msgservice: Command, name: str) -> Iterator[Terminal]:
    """A rewind that somebody has said yes to, of a receiver that is away: half of it waits."""
    few = ("--backlog-bytes", "65536")  # of which a quarter may wait for the next page
    assert msgservice("receivers", "add", name, name, *few).code == 0
    for _ in range(MANY):
        assert msgservice("send", name, "x" * 7500).code == 0
    assert msgservice("listen", name, "--count", str(MANY)).code == 0
    while msgservice.receiver(name)["settled"].get("acknowledged", 0) < MANY:
        pass  # its answers are on their way to the log when it has ended
    terminal = Terminal(
        *("msgservice", "rewind", name),
        cwd=msgservice.folder,
        environment={"MSGSERVICE_NODE": msgservice.node},
    )
    try:
        asked = terminal.until(lambda shown: shown.endswith("[y/N]:"))
        assert f"8 messages that {name} has acknowledged" in asked.splitlines()[0]
        assert terminal.screen.has_cursor
        terminal.type("y\n")
        yield terminal
    finally:
        terminal.close()


def bar_of(shown: str) -> int | None:
    """Return how many messages the bar says to be copied, where the last line is one."""
    match = BAR.match(shown.splitlines()[-1])
    return None if match is None else int(match[1])


def bars_in(shown: str) -> int:
    """Return how many bars are shown; a node that is slow to answer is told of beside one."""
    return sum(BAR.match(line) is not None for line in shown.splitlines())


def answer_of(shown: str) -> str:
    """What is shown below the question."""
    question, _, answer = shown.partition("[y/N]: y\n")
    assert question
    return answer


def test_47_a_bar_shows_how_far_a_rewind_is_and_is_gone_when_it_is_over(
    msgservice: Command,
) -> None:
    with rewinding(msgservice, "bar") as terminal:
        shown = terminal.until(lambda shown: (bar_of(shown) or 0) > 0)
        copied = bar_of(shown)
        assert copied is not None
        assert 0 < copied < MANY, "it waits for its receiver to come"
        assert len(shown.splitlines()[-1]) < COLUMNS
        assert bars_in(shown) == 1
        assert not terminal.screen.has_cursor
        told = msgservice.receiver("bar")["replay"]
        assert (told["copied"], told["over"]) == (copied, False)
        # It is drawn anew in its line while nothing goes on, and the time with it.
        later = terminal.until(lambda now: bar_of(now) == copied and now != shown)
        assert bars_in(later) == 1
        assert msgservice("listen", "bar", "--count", str(MANY)).code == 0
        code, shown = terminal.ended()
        assert code == 0
        assert answer_of(shown).endswith(f"bar: sent again, {MANY} messages copied")
        assert bars_in(shown) == 0
        assert terminal.screen.has_cursor
    assert msgservice("receivers", "remove", "bar", "--yes").code == 0


def test_47_ctrl_c_leaves_the_bar_and_says_that_the_rewind_goes_on(msgservice: Command) -> None:
    with rewinding(msgservice, "stopped") as terminal:
        copied = bar_of(terminal.until(lambda shown: (bar_of(shown) or 0) > 0))
        terminal.type("\x03")
        code, shown = terminal.ended()
        assert code == 130
        said = answer_of(shown).replace("^C", "")
        assert (
            said.split()
            == (
                f"msgservice: interrupted; {copied} messages copied, and the node goes on:"
                " msgservice rewind stopped --cancel ends that"
            ).split()
        )
        assert BAR.search(said) is None
        assert terminal.screen.has_cursor
    assert not msgservice.receiver("stopped")["replay"]["over"]
    assert msgservice("listen", "stopped", "--count", str(MANY)).code == 0
    while not msgservice.receiver("stopped")["replay"]["over"]:
        pass
    assert msgservice.receiver("stopped")["replay"]["copied"] == MANY
    assert msgservice("receivers", "remove", "stopped", "--yes").code == 0
