"""Rules: what is allowed to whom, and that asking is cheap however many patterns there are."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.core.subjects import matches
from msgservice.errors import BadSubject
from msgservice.identity import rules as rules_module
from msgservice.identity.rules import EVERYTHING, REMEMBERED_MAX, VERBS, Rules, Verb, covers

# `x` stands for every token that no pattern has.
ALPHABET = ("a", "b", "x")
PATTERN_TOKENS = 3
SUBJECTS = [
    ".".join(tokens)
    for length in range(1, PATTERN_TOKENS + 3)
    for tokens in product(ALPHABET, repeat=length)
]


@st.composite
def patterns(draw: st.DrawFn) -> str:
    tokens = draw(st.lists(st.sampled_from(["a", "b", "*"]), max_size=PATTERN_TOKENS))
    if not tokens or draw(st.booleans()):
        tokens.append(">")
    return ".".join(tokens)


def test_a_pattern_covers_another_that_matches_nothing_else() -> None:
    # All of them, up to four tokens. Subjects are longer than what stands before any `>` by two
    # tokens: still longer ones say nothing new.
    heads = [tokens for n in range(PATTERN_TOKENS + 1) for tokens in product("ab*", repeat=n)]
    texts = [".".join(tokens) for tokens in heads if tokens]
    texts += [".".join([*tokens, ">"]) for tokens in heads]
    matched = {text: {name for name in SUBJECTS if matches(text, name)} for text in texts}
    for allowed, asked in product(texts, repeat=2):
        assert (matched[asked] <= matched[allowed]) is covers(allowed, asked), (allowed, asked)


@given(patterns(), st.sampled_from(SUBJECTS))
def test_a_pattern_covers_the_subjects_that_it_matches(allowed: str, subject: str) -> None:
    assert matches(allowed, subject) is covers(allowed, subject)


@given(patterns(), patterns(), patterns())
def test_covering_is_an_order(one: str, two: str, three: str) -> None:
    assert covers(one, one)
    assert not (covers(one, two) and covers(two, one)) or one == two
    assert not (covers(one, two) and covers(two, three)) or covers(one, three)


@given(st.lists(patterns(), max_size=4), st.sampled_from(SUBJECTS))
def test_one_name_is_allowed_where_a_pattern_matches(said: list[str], name: str) -> None:
    rules = Rules(send=said, to=said, receive=said, request=said)
    expected = any(matches(pattern, name) for pattern in said)
    for verb in VERBS[:-1]:
        assert expected is rules.allows(verb, name)
        assert expected is rules.allows(verb, name)  # as remembered
        assert expected is (rules.deciding(verb, name) is not None)


@given(st.lists(patterns(), max_size=4), patterns())
def test_a_pattern_is_allowed_where_one_rule_covers_it(said: list[str], asked: str) -> None:
    rules = Rules(receive=said)
    assert any(covers(pattern, asked) for pattern in said) is rules.allows("receive", asked)


@pytest.mark.parametrize("verb", VERBS)
def test_all_is_forbidden_that_no_rule_allows(verb: Verb) -> None:
    assert not Rules().allows(verb, "a")
    assert Rules().deciding(verb, "a") is None


def test_a_verb_allows_nothing_to_another() -> None:
    for verb in VERBS[:-1]:
        rules = Rules(**{verb: ["a"]})  # type: ignore[arg-type]  # one verb's name, drawn from all
        assert [verb] == [other for other in VERBS if rules.allows(other, "a")]
    assert ["relay"] == [other for other in VERBS if Rules(relay=True).allows(other, "a")]


def test_a_pattern_is_held_against_rules_that_may_cover_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer asks for thousands in one HELLO, and a user may have a thousand rules."""
    asked: list[tuple[str, str]] = []

    def counted(allowed: str, narrow: str) -> bool:
        asked.append((allowed, narrow))
        return covers(allowed, narrow)

    monkeypatch.setattr(rules_module, "covers", counted)
    rules = Rules(receive=[*(f"stock.{number}.>" for number in range(1000)), "orders.>"])
    assert all(rules.allows("receive", f"orders.{number}.*") for number in range(100))
    assert not rules.allows("receive", "stock.>")
    assert {"orders.>"} == {allowed for allowed, _ in asked}
    assert 100 == len(asked)


def test_the_deciding_rule_is_the_first_that_allows_as_it_was_written() -> None:
    rules = Rules(send=["x.>", "a.*", "a.>"], receive=["b.>", "a.>"], relay=True)
    assert 'send = "a.*"' == rules.deciding("send", "a.b")
    assert 'send = "a.>"' == rules.deciding("send", "a.b.c")
    assert 'receive = "a.>"' == rules.deciding("receive", "a.*")
    assert "relay = true" == rules.deciding("relay")


@pytest.mark.parametrize("pattern", [">", "*.>", "*.stop"])
def test_who_may_request_everything_is_no_administrator(pattern: str) -> None:
    assert not Rules(request=[pattern]).allows("request", "$node.stop")
    assert not Rules(request=[pattern]).allows("request", "$node.>")
    assert Rules(request=[pattern, "$node.*"]).allows("request", "$node.stop")
    assert EVERYTHING.allows("request", "$node.stop")


def test_the_name_of_a_receiver_is_a_name_though_it_looks_like_a_pattern() -> None:
    # Names may have any token: `*` as a name is one name, and no way to ask for all.
    assert not Rules(to=["a"]).allows("to", "*")
    assert not Rules(to=["a.b"]).allows("to", "a.>")
    assert Rules(to=["*"]).allows("to", "*")
    assert Rules(to=["a.*"]).allows("to", "a.>")


def test_a_rule_that_is_no_pattern_is_refused() -> None:
    with pytest.raises(BadSubject):
        Rules(send=["a..b"])
    with pytest.raises(BadSubject):
        Rules(receive=["a.>.b"])


def test_rules_are_values() -> None:
    assert Rules(send=["a"]) == Rules(send=["a"])
    assert hash(Rules(send=["a"])) == hash(Rules(send=["a"]))
    assert len({Rules(), Rules(send=["a"]), Rules(to=["a"]), Rules(relay=True)}) == 4
    assert "Rules(send=['a'], relay=True)" == repr(Rules(send=["a"], relay=True))


def test_answers_are_remembered_in_a_bound() -> None:
    rules = Rules(send=["a.>"])
    for number in range(3 * REMEMBERED_MAX):
        assert rules.allows("send", f"a.{number}")
        assert not rules.allows("send", f"b.{number}")
        assert len(rules._by_verb["send"]._remembered) <= REMEMBERED_MAX
