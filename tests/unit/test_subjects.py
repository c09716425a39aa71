"""Subjects, patterns, names; and `SubjectMatcher` against matching each pattern by itself."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.core.subjects import (
    SubjectMatcher,
    check_name,
    check_names,
    check_pattern,
    check_subject,
    is_reserved,
    matches,
)
from msgservice.errors import BadName, BadSubject

TOKENS = st.sampled_from(["a", "b", "c"])
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=4).map(".".join)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    tokens = draw(st.lists(st.sampled_from(["a", "b", "c", "*"]), max_size=3))
    if not tokens or draw(st.booleans()):
        tokens.append(">")
    return ".".join(tokens)


OPERATIONS = st.lists(st.tuples(st.booleans(), patterns(), st.integers(0, 3)), max_size=30)


def matches_by_definition(pattern: list[str], tokens: list[str]) -> bool:
    if not pattern or not tokens:
        return pattern == tokens
    if pattern == [">"]:
        return True
    return pattern[0] in ("*", tokens[0]) and matches_by_definition(pattern[1:], tokens[1:])


@given(patterns(), SUBJECTS)
def test_one_pattern_matches_by_its_definition(pattern: str, subject: str) -> None:
    expected = matches_by_definition(pattern.split("."), subject.split("."))
    assert expected == matches(pattern, subject)


@given(OPERATIONS, st.lists(SUBJECTS, min_size=1, max_size=5))
def test_the_matcher_finds_what_each_pattern_finds_by_itself(
    operations: list[tuple[bool, str, int]], subjects: list[str]
) -> None:
    matcher: SubjectMatcher[int] = SubjectMatcher()
    pairs: set[tuple[str, int]] = set()
    for adding, pattern, value in operations:
        if adding:
            matcher.add(pattern, value)
            pairs.add((pattern, value))
        else:
            assert ((pattern, value) in pairs) == matcher.remove(pattern, value)
            pairs.discard((pattern, value))
    assert len(pairs) == len(matcher)
    for subject in subjects:
        expected = {
            value
            for pattern, value in pairs
            if matches_by_definition(pattern.split("."), subject.split("."))
        }
        assert expected == matcher.match(subject)


@given(st.lists(st.tuples(patterns(), st.integers(0, 3))))
def test_a_matcher_whose_patterns_are_all_removed_holds_nothing(
    pairs: list[tuple[str, int]],
) -> None:
    matcher: SubjectMatcher[int] = SubjectMatcher()
    for pattern, value in pairs:
        matcher.add(pattern, value)
    for pattern, value in pairs:
        matcher.remove(pattern, value)
    assert matcher._root.empty


def test_a_match_visits_no_node_of_other_subjects() -> None:
    class Counted(dict[str, object]):
        looked = 0

        def get(self, key: str, default: object = None) -> object:
            Counted.looked += 1
            return super().get(key, default)

    matcher: SubjectMatcher[int] = SubjectMatcher()
    for number in range(1000):
        matcher.add(f"orders.n{number}.>", number)
    pending = [matcher._root]
    while pending:
        node = pending.pop()
        if node.children is not None:
            pending.extend(node.children.values())
            node.children = Counted(node.children)  # type: ignore[assignment]  # a dict that counts
    assert matcher.match("orders.n7.new") == {7}
    assert Counted.looked == 2  # the leaf has none


def test_the_set_that_match_returns_is_the_callers() -> None:
    matcher: SubjectMatcher[str] = SubjectMatcher()
    matcher.add("a", "one")
    matcher.match("a").clear()
    assert matcher.match("a") == {"one"}


def test_the_matcher_takes_no_bad_pattern() -> None:
    matcher: SubjectMatcher[str] = SubjectMatcher()
    with pytest.raises(BadSubject):
        matcher.add("a..b", "one")
    assert len(matcher) == 0


GOOD_SUBJECTS = ["a", "orders.new", "$node.status", "Bestellungen.für.Köln", "a-b_c:d", "x" * 255]
BAD_SUBJECTS = {
    "": "empty",
    ".": "empty token",
    "a.": "empty token",
    ".a": "empty token",
    "a..b": "empty token",
    "a b": "' '",
    "a\tb": r"'\\t'",
    "a\n": r"'\\n'",
    "a\x00": r"'\\x00'",
    "a\x7f": r"'\\x7f'",
    "a\u2028b": r"'\\u2028'",
    "a\ud800": r"'\\ud800'",
    "é" * 128: "256 bytes, at most 255",
    "x" * 256: "256 bytes, at most 255",
}
GOOD_PATTERNS = [*GOOD_SUBJECTS, "*", ">", "*.>", "a.*.c", "a.>", "*.*.*"]
WILD = {"*": "patterns only", "a.>": "patterns only", "a*": "patterns only", "a>.b": "patterns"}
BAD_OR_WILD: dict[str, str] = BAD_SUBJECTS | WILD
BAD_PATTERNS = {
    **BAD_SUBJECTS,
    ">.a": "last token",
    "a.>.b": "last token",
    ">>": "of their own",
    "a*": "of their own",
    "a.b>": "of their own",
    "**": "of their own",
}
GOOD_NAMES = ["billing", "shop-1", "Kasse.3", "*", "é" * 127, "日本"]
BAD_NAMES = {"": "empty", "a/b": "'/'", "a b": "' '", "a\r": r"'\\r'", "é" * 128: "256 bytes",
             "$node": "the node's own"}  # fmt: skip


@pytest.mark.parametrize("subject", GOOD_SUBJECTS)
def test_a_good_subject_passes(subject: str) -> None:
    check_subject(subject)


@pytest.mark.parametrize("subject", BAD_OR_WILD)
def test_a_bad_subject_is_refused_with_the_reason(subject: str) -> None:
    with pytest.raises(BadSubject, match=BAD_OR_WILD[subject]) as caught:
        check_subject(subject)
    assert subject == caught.value.subject


@pytest.mark.parametrize("pattern", GOOD_PATTERNS)
def test_a_good_pattern_passes(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize("pattern", BAD_PATTERNS)
def test_a_bad_pattern_is_refused_with_the_reason(pattern: str) -> None:
    with pytest.raises(BadSubject, match=BAD_PATTERNS[pattern]):
        check_pattern(pattern)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_passes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(BadName, match=BAD_NAMES[name]):
        check_name(name)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names_pass_together(name: str) -> None:
    check_names([name])
    check_names([name, "other", name])


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_among_many_is_refused_with_the_reason(name: str, at: int) -> None:
    names = ["one", "two"]
    names.insert(at, name)
    for many in (names, [name]):
        with pytest.raises(BadName, match=BAD_NAMES[name]):
            check_names(many)


@given(st.text(alphabet="a/$. \x7fé", max_size=8), st.text(alphabet="a/$ ", max_size=2))
def test_names_together_pass_where_each_does(one: str, other: str) -> None:
    def passes(check: Callable[[], object]) -> bool:
        try:
            check()
        except BadName:
            return False
        return True

    each = passes(lambda: [check_name(one), check_name(other)])
    assert each == passes(lambda: check_names([one, other]))


@given(st.text(max_size=80))
def test_every_text_is_decided_and_what_passes_can_be_sent(text: str) -> None:
    try:
        check_subject(text)
    except BadSubject:
        return
    check_pattern(text)
    assert len(text.encode()) <= 255


def test_the_nodes_own_subjects_begin_with_a_dollar() -> None:
    assert [is_reserved("$node.status"), is_reserved("orders.$")] == [True, False]
