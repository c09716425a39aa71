"""Acts on many messages from the command line: said before, asked, done once, and told."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner
from twisted.internet.defer import Deferred

from msgservice.cli import acts
from msgservice.cli.acts import Act, Done, Touched, act_options
from msgservice.cli.session import Session, node_options
from msgservice.errors import LogFull, Refused
from tests.kit.threads import ThreadCalls

SENTENCE = "12 dead letters of billing would be dropped"
TWELVE = Touched(count=12, sentence=SENTENCE, fields={"receiver": "billing"})
DROPPED = Done(sentence="dropped 12", fields={"dropped": 12})


class World:
    """One act, how it was answered, and how often it was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.done = 0
        self.asked: list[str] = []
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.answered(None)

    def answered(self, answer: bool | None) -> None:
        """At a terminal somebody answers; None: there is no terminal."""

        def confirm(question: str, *, err: bool) -> bool:
            assert err, "a question is nothing of the outcome"
            self.asked.append(question)
            assert answer is not None
            return answer

        self._monkeypatch.setattr(acts, "is_attended", lambda: answer is not None)
        self._monkeypatch.setattr(click, "confirm", confirm)

    def run(
        self, act: Act, touched: Touched = TWELVE, done: Done = DROPPED, *, as_json: bool = False
    ) -> tuple[str, str]:
        async def do() -> Done:
            self.done += 1
            return done

        reactor: Any = ThreadCalls()
        work = act.carry_out(Session(as_json=as_json), reactor, touched, do)
        reactor.wait(Deferred.fromCoroutine(work))
        said = self._capsys.readouterr()
        return said.out, said.err


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> World:
    return World(monkeypatch, capsys)


def test_a_dry_run_says_what_would_be_touched_and_does_nothing(world: World) -> None:
    world.answered(True)
    assert world.run(Act(dry_run=True)) == (f"{SENTENCE}\n", "")
    assert (world.done, world.asked) == (0, [])


def test_a_person_is_asked_with_what_would_be_touched(world: World) -> None:
    world.answered(True)
    assert world.run(Act()) == ("dropped 12\n", "")
    assert (world.done, world.asked) == (1, [f"{SENTENCE}. Do it?"])


def test_what_a_person_does_not_want_is_not_done(world: World) -> None:
    world.answered(False)
    with pytest.raises(Refused, match="nothing was done"):
        world.run(Act())
    assert world.done == 0


def test_without_a_terminal_nothing_is_done_that_nobody_has_said_yes_to(world: World) -> None:
    with pytest.raises(Refused, match=f"nothing was done: {SENTENCE}; --yes says so"):
        world.run(Act())
    assert (world.done, world.asked) == (0, [])


def test_a_program_is_never_asked(world: World) -> None:
    world.answered(True)
    with pytest.raises(Refused, match="--yes says so"):
        world.run(Act(), as_json=True)
    assert (world.done, world.asked) == (0, [])


def test_with_yes_it_is_said_beside_the_outcome(world: World) -> None:
    assert world.run(Act(yes=True)) == ("dropped 12\n", f"{SENTENCE}\n")
    assert world.done == 1


@pytest.mark.parametrize("act", [Act(dry_run=True), Act(yes=True)])
def test_a_program_gets_one_line_of_json(world: World, act: Act) -> None:
    said, complained = world.run(act, as_json=True)
    assert complained == ""
    assert said.count("\n") == 1
    assert json.loads(said) == {
        "dry_run": act.dry_run,
        "would": {"count": 12, "receiver": "billing"},
        "done": {"dropped": 12} if act.yes else None,
    }


def test_nobody_is_asked_about_nothing(world: World) -> None:
    nothing = Touched(count=0, sentence="no dead letters of billing")
    assert world.run(Act(), nothing) == ("no dead letters of billing\n", "")
    assert json.loads(world.run(Act(), nothing, as_json=True)[0])["done"] is None
    assert (world.done, world.asked) == (0, [])


def test_what_was_done_is_told_also_where_something_ended_it(world: World) -> None:
    half = Done(sentence="dropped 5", fields={"dropped": 5}, failed=LogFull("full", delay=1.0))
    said: list[str] = []
    with pytest.raises(LogFull):
        world.run(Act(yes=True), done=half, as_json=True)
    said.append(world._capsys.readouterr().out)
    assert json.loads(said[0])["done"] == {"dropped": 5}


@pytest.mark.parametrize(
    ("words", "expected"),
    [((), (False, False)), (("--dry-run",), (True, False)), (("--yes",), (False, True))],
)
def test_the_options_make_the_act(words: tuple[str, ...], expected: tuple[bool, bool]) -> None:
    @click.command()
    @click.argument("name")
    @node_options
    @act_options
    def command(session: Session, act: Act, name: str) -> None:
        """Say what it got."""
        click.echo(f"{act.dry_run} {act.yes} {name} {session.as_json}")

    told = CliRunner().invoke(command, ["billing", "--json", *words])
    assert told.output == f"{expected[0]} {expected[1]} billing True\n"
    both = CliRunner().invoke(command, ["billing", "--dry-run", "--yes"])
    assert (both.exit_code, "--dry-run does nothing" in both.output) == (2, True)
