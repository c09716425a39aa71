"""Every key has its line, and a mistake of grammar hides no other."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msgservice.config.toml import Document, KeyPath, parse_document

TEXT = '''\
# a comment
[node]
name = "a"   # [not a heading]

[[receiver]]
name = "one"
subjects = [
    "a.>",  # ]
    "[b]",
]
note = """
[limits]
x = 1
"""
[[receiver]]
name = "two"
window = { messages = 1, bytes = 2 }
[receiver.more]
deep.er = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("node",), 2),
        (("node", "name"), 3),
        (("receiver", 0), 5),
        (("receiver", 0, "name"), 6),
        (("receiver", 0, "subjects"), 7),
        (("receiver", 0, "note"), 11),
        (("receiver", 1), 15),
        (("receiver", 1, "name"), 16),
        (("receiver", 1, "window", "bytes"), 17),
        (("receiver", 1, "more"), 18),
        (("receiver", 1, "more", "deep", "er"), 19),
        (("receiver", 1, "absent"), 15),
        (("absent",), 1),
    ],
)
def test_every_key_has_its_line(path: KeyPath, line: int) -> None:
    assert line == parse_document(TEXT).line(path)


def test_values_are_those_of_the_parser() -> None:
    assert tomllib.loads(TEXT) == parse_document(TEXT).values


def problems(document: Document) -> list[tuple[int, str]]:
    return [(p.line, p.reason) for p in document.problems]


@pytest.mark.parametrize(
    ("text", "expected", "rest"),
    [
        ("a = tru\nb = 2\nc = fals", [(1, "invalid value"), (3, "invalid value")], {"b": 2}),
        ("a = [1\nb = 2", [(1, "unclosed array (noticed at line 2)")], {"b": 2}),
        ("s = [\n'a'\n'b'\n]\nt = 1", [(1, "unclosed array (noticed at line 3)")], {"t": 1}),
        ("a = 1\na = 2\nb = 3", [(2, "this key was given before")], {"a": 1, "b": 3}),
        ("[x]\na = 1\n[x]\na = 2\n[y]", [(3, "[x] was opened before")], {"x": {"a": 1}, "y": {}}),
        ('b = 1\na = """x\nc = 2\n', [(2, "unterminated string (noticed at line 3)")], {"b": 1}),
        (
            "[x\na = 1\n[y]\nb = 2",
            [(1, "expected ']' at the end of a table declaration")],
            {"y": {"b": 2}},
        ),
    ],
)
def test_a_mistake_hides_nothing_else(
    text: str, expected: list[tuple[int, str]], rest: dict[str, object]
) -> None:
    document = parse_document(text)
    assert expected == problems(document)
    assert rest == document.values


def test_mistakes_are_counted_up_to_a_limit() -> None:
    assert 20 == len(parse_document("a = tru\n" * 1000).problems)


@given(st.text(alphabet="ab=[]{}\"'#.\n 1,", max_size=60))
def test_any_text_is_either_read_whole_or_has_problems(text: str) -> None:
    document = parse_document(text)
    try:
        expected = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assert document.problems
    else:
        assert not document.problems
        assert expected == document.values
        assert all((key,) in document.lines for key in expected)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\r", 1),
        ("a = 1\nb = " + "[" * 5000, 2),
        ("a = 1\nb = " + "9" * 5000, 2),
        ("a" + ".a" * 5000 + " = 1", 1),
    ],
    ids=["a carriage return alone", "deep", "many digits", "a key of many parts"],
)
def test_what_the_parser_does_not_take_is_a_problem_with_its_line(text: str, line: int) -> None:
    assert [line] == [problem.line for problem in parse_document(text).problems]
