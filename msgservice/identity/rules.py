"""`Rules`: what a user may do. Whatever no rule allows is forbidden.

A rule is a verb and a pattern: `send` of subjects, `to` of receivers' names, `receive` of patterns,
`request` of subjects, and `relay`, which has no pattern. `send` and `to` are asked for one name, to
be matched. `receive` and `request` may also be asked for a pattern: then all that it matches must
be allowed by one rule (`covers`).

A pattern whose first token is `*` or `>` reaches no name that begins with `$`: who may request
everything is no administrator by that, `$node.>` must be said.

The node asks for each batch, so answers are remembered, at most `REMEMBERED_MAX` for each verb;
what is not remembered costs a walk of the subject's tokens, however many patterns there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgservice.core.subjects import (
    ONE,
    REST,
    SubjectMatcher,
    check_pattern,
    is_reserved,
)

Verb = Literal["send", "to", "receive", "request", "relay"]
VERBS: tuple[Verb, ...] = ("send", "to", "receive", "request", "relay")
# Answers of one user and verb, 100 bytes each with their name: a thousand users who make up
# subjects take 100 MB at most with all four verbs.
REMEMBERED_MAX = 256


def covers(allowed: str, asked: str) -> bool:
    """Return whether every subject that the pattern `asked` matches, `allowed` matches too."""
    wide, narrow = allowed.split("."), asked.split(".")
    if wide[-1] == REST:
        wide.pop()
        # A `>` in `narrow` is its last token, and so stands behind all that is compared below.
        if len(narrow) <= len(wide):
            return False
    elif len(narrow) != len(wide) or narrow[-1] == REST:
        return False
    return all(w in (ONE, n) for w, n in zip(wide, narrow, strict=False))


class Patterns:
    """Patterns that allow names, in the order given, each once.

    `covering`: what is asked for may be a pattern itself. Raises `BadSubject` for what is none.
    """

    __slots__ = ("_covering", "_matcher", "_order", "_remembered", "texts")

    def __init__(self, texts: Iterable[str], *, covering: bool = False) -> None:
        self.texts = tuple(dict.fromkeys(map(check_pattern, texts)))
        self._order: dict[str, int] = {}  # made with the matcher
        self._covering = covering
        self._matcher: SubjectMatcher[str] | None = None
        self._remembered: dict[str, bool] = {}

    def allow(self, name: str) -> bool:
        """Return whether a pattern allows this name."""
        answer = self._remembered.get(name)
        if answer is None:
            answer = self.deciding(name) is not None
            if len(self._remembered) >= REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[name] = answer
        return answer

    def _compiled(self) -> SubjectMatcher[str]:
        # When it is first asked: a reload of a thousand users would stand still for a second.
        if self._matcher is None:
            self._matcher = SubjectMatcher()
            for text in self.texts:
                self._matcher.add(text, text)
            self._order = {text: number for number, text in enumerate(self.texts)}
        return self._matcher

    def deciding(self, name: str) -> str | None:
        """Return the first pattern that allows this name; None where there is none."""
        found: Iterable[str] = self._compiled().match(name)
        if self._covering and _is_open(name):
            # Taken for a name, a pattern is matched by all that cover it: its `*` by `*` alone.
            found = [text for text in found if covers(text, name)]
        if is_reserved(name):
            found = [text for text in found if is_reserved(text)]
        return min(found, key=self._order.__getitem__, default=None)


def _is_open(pattern: str) -> bool:
    """Whether a pattern stands for more than one subject."""
    return REST in pattern or ONE in pattern  # in a pattern they are tokens of their own


class Rules:
    """The rules of one user: a value, equal to another with the same rules.

    `relay`: whether it may hand in what others have sent. Raises `BadSubject` for a pattern that
    is none.
    """

    __slots__ = ("_by_verb", "relay")

    def __init__(
        self,
        *,
        send: Iterable[str] = (),
        to: Iterable[str] = (),
        receive: Iterable[str] = (),
        request: Iterable[str] = (),
        relay: bool = False,
    ) -> None:
        self._by_verb: dict[str, Patterns] = {
            "send": Patterns(send),
            "to": Patterns(to),
            "receive": Patterns(receive, covering=True),
            "request": Patterns(request, covering=True),
        }
        self.relay = relay

    def allows(self, verb: Verb, name: str = "") -> bool:
        """Return whether the verb is allowed for this name or pattern; `relay` has none."""
        return self.relay if verb == "relay" else self._by_verb[verb].allow(name)

    def deciding(self, verb: Verb, name: str = "") -> str | None:
        """Return the rule that allows it, as the configuration says it; None: it is forbidden."""
        if verb == "relay":
            return "relay = true" if self.relay else None
        pattern = self._by_verb[verb].deciding(name)
        return None if pattern is None else f'{verb} = "{pattern}"'

    def patterns(self, verb: Verb) -> tuple[str, ...]:
        """Return the patterns of a verb, in the order of the configuration; none for `relay`."""
        return () if verb == "relay" else self._by_verb[verb].texts

    def _key(self) -> tuple[object, ...]:
        return (*(patterns.texts for patterns in self._by_verb.values()), self.relay)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Rules) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        said = [f"{verb}={list(self.patterns(verb))}" for verb in VERBS if self.patterns(verb)]
        return f"Rules({', '.join([*said, 'relay=True'] if self.relay else said)})"


# An operator's: all that there is.
EVERYTHING = Rules(send=[">"], to=[">"], receive=[">"], request=[">", "$node.>"], relay=True)
