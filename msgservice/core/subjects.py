"""Subjects, patterns and names: what is well-formed, and who matches.

A subject is tokens separated by dots. In a pattern, `*` stands for exactly one token and a last
`>` for one or more (the NATS convention). Neither stands for a first token that begins with `$`
(DELIVERY 57): what is the node's own is got by who says so.

Called wherever a name enters: session, ingress,
directory, client; calls nothing. Who may use a name is not decided here. A text that comes from a
program is `exact` from here on: each check returns it, and what was given is not used again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from msgservice.errors import BadName, BadSubject, ProtocolError
from msgservice.limits import NAME_BYTES_MAX

V = TypeVar("V", bound=Hashable)

ONE = "*"  # any one token
REST = ">"  # one or more tokens, at the end
STREAMS = "streams."  # subjects below it can be read by their subject (`ILog.of_stream`)
EVERY_STREAM = f"{STREAMS}>"

# Whitespace, control characters, and lone surrogates (which have no UTF-8).
_UNFIT = r"\s\x00-\x1f\x7f-\x9f\ud800-\udfff"
_is_subject = re.compile(rf"[^{_UNFIT}.*>]+(?:\.[^{_UNFIT}.*>]+)*").fullmatch
_is_pattern = re.compile(
    rf"(?:(?:\*|[^{_UNFIT}.*>]+)\.)*(?:\*|>|[^{_UNFIT}.*>]+)",
).fullmatch
_is_name = re.compile(rf"[^{_UNFIT}/]+").fullmatch
_find_unfit = re.compile(rf"[{_UNFIT}]").search


def exact(text: str, what: str = "text") -> str:
    """The text as a `str`, also where its class is derived from that, as numpy's and markupsafe's.

    Frames, entries of the log and rows hold no other class. `TypeError` for what is no text, which
    says `what` it is.
    """
    if type(text) is str:
        return text
    if not isinstance(text, str):
        raise TypeError(f"{what} is a str, not {type(text).__name__}")
    return str.__str__(text)  # its characters, whatever its own class says


def check_subject(subject: str) -> str:
    """Return the `exact` subject; `BadSubject` unless messages may be sent to it."""
    subject = exact(subject, "subject")
    if _is_subject(subject) is None or _too_long(subject):
        raise _bad_subject(subject, is_pattern=False)
    return subject


def check_pattern(pattern: str) -> str:
    """Return the `exact` pattern; `BadSubject` unless it is a subject or a pattern of subjects."""
    pattern = exact(pattern, "pattern")
    if _is_pattern(pattern) is None or _too_long(pattern):
        raise _bad_subject(pattern, is_pattern=True)
    return pattern


def check_name(name: str) -> str:
    """Return the `exact` name; `BadName` unless a sender, a receiver or a node may have it."""
    name = check_word(name)
    if is_reserved(name):
        raise BadName(name, "names that begin with '$' are the node's own")
    return name


def check_word(name: str) -> str:
    """Return the `exact` word; `BadName` unless it has a name's form, as an incarnation has."""
    name = exact(name, "name")
    if _is_name(name) is None or _too_long(name):
        reason = _what_is_unfit(name)
        if reason is None:
            assert "/" in name, name
            reason = "'/' is not allowed"
        raise BadName(name, reason)
    return name


def check_key(key: str) -> str:
    """Return the `exact` idempotency key; `BadName` unless it has 1 to 255 bytes."""
    key = exact(key, "key")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise BadName(key, "it is no UTF-8", "idempotency key") from None
    if not 1 <= size <= NAME_BYTES_MAX:
        reason = f"an idempotency key has 1 to {NAME_BYTES_MAX} bytes, not {size}"
        raise BadName(key, reason, "idempotency key")
    return key


def check_names(names: Sequence[str]) -> None:
    """`BadName` for the first of many names that is none, as `check_name` says.

    Ordinary ones are looked at together: a peer can say a hundred thousand in one frame.
    """
    joined = "/".join(names)
    # No white space, control character or surrogate is printable, but the space.
    if (
        joined.isascii()
        and joined.isprintable()
        and not any([odd in f"/{joined}/" for odd in (" ", "//", "/$")])  # noqa: C419 - a list is faster
        and joined.count("/") == len(names) - 1
        and max(map(len, names)) <= NAME_BYTES_MAX
    ):
        return
    wrong = (
        name
        for name in names
        if _is_name(name) is None or is_reserved(name) or len(name.encode()) > NAME_BYTES_MAX
    )
    for name in wrong:
        check_name(name)


class Checked:
    """Texts of the other side that a check let pass: it looks at each once, while it is kept.

    `known`: at most `most` of them. Who asks often looks there first, and calls `look` for others.
    """

    __slots__ = ("_check", "_most", "known")

    def __init__(self, check: Callable[[str], str], most: int) -> None:
        self._check, self._most = check, most
        self.known: set[str] = set()

    def look(self, text: str) -> None:
        """Check a text, and know it from now on; raises what the check raises."""
        self._check(text)
        if len(self.known) >= self._most:
            self.known.clear()
        self.known.add(text)


def is_reserved(subject: str) -> bool:
    """Return whether a subject or name is one of the node's own (`$node.status` and the like)."""
    return subject.startswith("$")


def matches(pattern: str, subject: str) -> bool:
    """Return whether `subject` matches `pattern`; for one question. Many: `SubjectMatcher`."""
    if is_reserved(subject) and not is_reserved(pattern):
        return False
    expected = pattern.split(".")
    tokens = subject.split(".")
    if expected[-1] == REST:
        expected.pop()
        if len(tokens) <= len(expected):
            return False
    elif len(tokens) != len(expected):
        return False
    return all(e in (ONE, t) for e, t in zip(expected, tokens, strict=False))


def _too_long(text: str) -> bool:
    # UTF-8 has at most four bytes a character, so most texts need not be encoded to be measured.
    return len(text) * 4 > NAME_BYTES_MAX and len(text.encode()) > NAME_BYTES_MAX


def _what_is_unfit(text: str) -> str | None:
    if not text:
        return "it is empty"
    if (found := _find_unfit(text)) is not None:
        return f"character {found.group()!a} at {found.start()} is not allowed"
    if _too_long(text):
        return f"{len(text.encode())} bytes, at most {NAME_BYTES_MAX} allowed"
    return None


def _bad_subject(subject: str, *, is_pattern: bool) -> ProtocolError:
    reason = _what_is_unfit(subject)
    if reason is None:
        tokens = subject.split(".")
        if "" in tokens:
            reason = "empty token"
        elif not is_pattern:
            reason = "'*' and '>' belong in patterns only, which receivers have"
        elif REST in tokens[:-1]:
            reason = "'>' may only be the last token"
        else:
            reason = "'*' and '>' must be tokens of their own"
    return BadSubject(subject, reason)


class _Node(Generic[V]):
    """One token of the tree: what ends here, what goes on, and what takes all the rest.

    Each is None until there is something: most nodes have one of them.
    """

    __slots__ = ("children", "here", "rest", "star")

    def __init__(self) -> None:
        self.children: dict[str, _Node[V]] | None = None
        self.star: _Node[V] | None = None
        self.here: set[V] | None = None
        self.rest: set[V] | None = None

    def below(self, token: str) -> _Node[V] | None:
        """Return the node that a token of a pattern leads to."""
        if token == ONE:
            return self.star
        return None if self.children is None else self.children.get(token)

    @property
    def empty(self) -> bool:
        return not (self.children or self.here or self.rest or self.star)


class SubjectMatcher(Generic[V]):
    """Finds the values whose patterns match a subject.

    A tree with one level for each token. `match` visits only nodes that the subject's own tokens
    lead to, so its cost grows with the tokens, with the patterns that differ by `*` only, and
    with what matches; not with the values that do not. A value may have several patterns.
    """

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()
        self._count = 0
        self.tokens = 0  # of all pairs: memory, and what `match` visits at most, grow with it

    def __len__(self) -> int:
        """The number of pairs of pattern and value."""
        return self._count

    def add(self, pattern: str, value: V) -> None:
        """Let `value` match `pattern`; nothing if it does already. Raises `BadSubject`."""
        pattern = check_pattern(pattern)
        node = self._root
        tokens = pattern.split(".")
        to_rest = tokens[-1] == REST
        if to_rest:
            tokens.pop()
        for token in tokens:
            child = node.below(token)
            if child is None:
                child = _Node()
                if token == ONE:
                    node.star = child
                elif node.children is None:
                    node.children = {token: child}
                else:
                    node.children[token] = child
            node = child
        values = node.rest if to_rest else node.here
        if values is None:
            values = set()
            if to_rest:
                node.rest = values
            else:
                node.here = values
        if value not in values:
            values.add(value)
            self._count += 1
            self.tokens += count_tokens(pattern)

    def remove(self, pattern: str, value: V) -> bool:
        """Undo `add`; return whether there was anything to undo."""
        node = self._root
        path: list[tuple[_Node[V], str]] = []
        tokens = pattern.split(".")
        to_rest = tokens[-1] == REST
        if to_rest:
            tokens.pop()
        for token in tokens:
            path.append((node, token))
            child = node.below(token)
            if child is None:
                return False
            node = child
        values = node.rest if to_rest else node.here
        if not values or value not in values:
            return False
        values.discard(value)
        self._count -= 1
        self.tokens -= count_tokens(pattern)
        while path and node.empty:
            node, token = path.pop()
            if token == ONE:
                node.star = None
            elif node.children is not None:
                del node.children[token]
        return True

    def match(self, subject: str) -> set[V]:
        """Return a new set of the values that have a pattern which matches `subject`."""
        found: set[V] = set()
        level = [self._root]
        tokens = subject.split(".")
        if is_reserved(subject):
            own = (self._root.children or {}).get(tokens.pop(0))
            level = [] if own is None else [own]
        for token in tokens:
            below: list[_Node[V]] = []
            for node in level:
                if node.rest:
                    found |= node.rest
                children = node.children
                if children is not None and (child := children.get(token)) is not None:
                    below.append(child)
                if node.star is not None:
                    below.append(node.star)
            if not below:
                return found
            level = below
        for node in level:
            if node.here:
                found |= node.here
        return found


def count_tokens(pattern: str) -> int:
    """Return the number of a pattern's tokens."""
    return pattern.count(".") + 1


def streams_of(user: str) -> str:
    """Return the name of the sender and receiver that serve streams for a user, empty: nobody's."""
    name = STREAMS.removesuffix(".")
    return f"{user}.{name}" if user else name
