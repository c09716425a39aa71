"""The reference pages say what the code says: nothing missing, nothing invented, no old value."""

import ast
import inspect
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from msgservice import errors
from msgservice.cli.exit_codes import ExitCode
from msgservice.cli.main import main
from msgservice.config import addresses as config_addresses
from msgservice.config import config
from msgservice.limits import LOWEST, ORDERED, PARTS, ZERO_ALLOWED, Limits
from msgservice.tap import Options
from tests.kit.certificates import Authority

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
NOT_BUILT: tuple[int, ...] = ()  # rules of which nothing is built yet


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the tables below `heading`, up to the next of its rank."""
    text = (DOCS / page).read_text()
    rank = heading.split(" ")[0]
    assert f"\n{heading}\n" in text, f"{page} has no heading {heading!r}"
    part = text.partition(f"\n{heading}\n")[2]
    part = re.split(rf"^{rank} ", part, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0].strip().startswith("`")]


def code(cell: str) -> str:
    return cell.strip().strip("`")


def test_every_limit_is_documented_with_its_default() -> None:
    documented = {code(row[0]): row[1] for row in rows("configuration.md", "## `[limits]`")}
    assert {f.name: str(f.default) for f in fields(Limits)} == documented


@pytest.mark.usefixtures("operators_limits")
def test_every_lowest_value_of_a_limit_is_documented() -> None:
    part = rows("configuration.md", "## Smallest values of limits")
    documented = {code(row[0]): row[1].removesuffix("|").strip() for row in part}
    zero = {name: " (or 0)" if name in ZERO_ALLOWED else "" for name in LOWEST}
    assert {name: f"{lowest}{zero[name]}" for name, lowest in LOWEST.items()} == documented


@pytest.mark.usefixtures("operators_limits")
def test_every_pair_of_limits_that_bound_each_other_is_documented() -> None:
    documented = {
        (code(row[0]), *row[1].removesuffix("|").strip().rsplit(" ", 1))
        for row in rows("configuration.md", "## Limits that bound each other")
    }
    assert documented == {
        *((name, "at most", f"`{bound}`") for name, bound in ORDERED),
        *((name, "less than", f"`{bound}`") for name, bound in PARTS),
    }


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("## `[node]`", config.NODE_KEYS),
        ("## `[listen]`", config_addresses.listeners()),
        ("## `[[listen]]`", config.LISTEN_KEYS),
        ("## `[web]`", config.WEB_KEYS),
        ("## `[streams]`", config.STREAMS_KEYS),
        ("## `[tls]`", config.TLS_KEYS),
        ("## `[webhook]`", (*config.HOOKS_KEYS, *config.HOOK_KEYS)),
        ("## `[[receiver]]`", config.RECEIVER_KEYS),
        ("## `[[user]]`", config.USER_KEYS),
        ("## `[rate]`", config.RATE_KEYS),
    ],
)
def test_every_option_is_documented(heading: str, keys: tuple[str, ...]) -> None:
    assert set(keys) == {code(row[0]) for row in rows("configuration.md", heading)}


def test_every_flag_is_documented() -> None:
    options = Options()
    known = {name for name in options.longOpt if not name.startswith(("help", "version"))}
    documented = {
        code(row[0]).removeprefix("--").partition(" ")[0]
        for row in rows("configuration.md", "## Flags")
    }
    assert {name.rstrip("=") for name in known} == documented


def test_the_exit_codes_of_the_help_are_those_of_the_page() -> None:
    told = (
        CliRunner().invoke(main, ["--help"], terminal_width=200).output.partition("Exit codes:")[2]
    )
    helped = [tuple(line.split(maxsplit=1)) for line in told.splitlines() if line.strip()]
    text = (DOCS / "cli.md").read_text().partition("| code | meaning |")[2].partition("\n\n")[0]
    documented = re.findall(r"^\| (\d+) \| (.*) \|$", text, flags=re.MULTILINE)
    assert helped == documented
    assert [str(int(code)) for code in ExitCode] == [code for code, _ in documented]


def test_the_example_is_a_right_configuration(tmp_path: Path) -> None:
    text = (DOCS / "configuration.md").read_text()
    example, of_tls = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "node.toml"
    # Whoever runs the tests may well not write there.
    file.write_text(example.replace("/var/lib", str(tmp_path)).replace("/run", str(tmp_path)))
    assert ("billing", "archive") == tuple(r.name for r in config.load_config(file).receivers)
    authority = Authority(tmp_path)
    authority.ca.cert_pem.write_to_path(str(tmp_path / "partners.pem"))
    for name in ("node", "public"):
        authority.issue(name)
    file.write_text(of_tls.replace("/etc/msgservice", str(tmp_path)))
    assert ["partners"] == list(config.load_config(file).tls.named)


def defined_errors() -> dict[str, type[errors.MsgServiceError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.MsgServiceError)
    }


def test_every_error_is_documented() -> None:
    headings = re.findall(r"^## .*$", (DOCS / "errors.md").read_text(), flags=re.MULTILINE)
    documented = {code(row[0]) for heading in headings for row in rows("errors.md", heading)}
    assert set(defined_errors()) == documented


def test_every_wire_code_is_documented_and_unique() -> None:
    codes = {
        name: str(error.wire_code)
        for name, error in defined_errors().items()
        if issubclass(error, errors.ProtocolError)
    }
    documented = {
        code(row[0]): row[1] for row in rows("errors.md", "## Broken protocol (`ProtocolError`)")
    }
    assert codes == documented
    assert len(set(codes.values())) == len(codes)


def test_every_code_of_a_refusal_is_documented_and_unique() -> None:
    codes = {
        name: str(error.refusal_code)
        for name, error in defined_errors().items()
        if "refusal_code" in vars(error) and error.refusal_code
    }
    documented = {code(row[0]): row[1] for row in rows("errors.md", "## Codes of refusals")}
    assert codes == documented
    assert len(set(codes.values())) == len(codes)


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=~! ;]", r)[0].lower() for r in requirements}

    def reasons(heading: str) -> set[str]:
        found = rows("dependencies.md", heading)
        assert all(len(row) == 2 and row[1] for row in found), found
        return {name.lower() for row in found for name in re.findall(r"`([^`]+)`", row[0])}

    assert names(project["dependencies"]) == reasons("## To run")
    # What builds the pages is had by developers too: the tests build the site.
    assert names(extras["dev"]) == reasons("## To develop") | {"msgservice"}
    assert names(extras["docs"]) == reasons("## To build the documentation")
    assert names(extras["objects"]) == reasons("## For sessions that carry any object")
    assert {"dev", "docs", "objects"} == set(extras)


def rules() -> dict[int, str]:
    """Return the rules of delivery by number, each in one line."""
    text = (DOCS / "semantics.md").read_text()
    text = re.sub(r"^## .*$", "", text, flags=re.MULTILINE)
    parts = re.split(r"^(\d+)\. ", text, flags=re.MULTILINE)
    return {int(parts[n]): " ".join(parts[n + 1].split()) for n in range(1, len(parts), 2)}


def test_every_rule_of_delivery_has_its_number() -> None:
    assert list(range(1, 35)) == list(rules())


def test_every_rule_that_is_built_has_a_test_with_its_number() -> None:
    # A rule that is not built ends with the mark and says nothing of what is; 34 is an absence.
    built = {n for n, rule in rules().items() if n not in NOT_BUILT and n != 34}
    assert all("*(not built yet)*" in rules()[n] for n in NOT_BUILT)
    tested = {
        int(number)
        for file in (CHECKOUT / "tests").rglob("test_*.py")
        for number in re.findall(r"(?:def test_|SEMANTICS )(\d+)[_. ]", file.read_text())
    }
    assert set() == built - tested


def test_the_map_of_the_house_names_every_part() -> None:
    layers = CHECKOUT / "tests" / "unit" / "test_layers.py"
    (value,) = [
        node.value
        for node in ast.parse(layers.read_text()).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "LAYERS"
        and node.value is not None
    ]
    parts = {name for layer in ast.literal_eval(value) for name in layer if name}
    text = (DOCS / "architecture.md").read_text()
    existing = {n for n in parts if (CHECKOUT / "msgservice" / n).exists()}
    existing |= {n for n in parts if (CHECKOUT / "msgservice" / f"{n}.py").exists()}
    families = re.findall(r"\b(\w+_)\*", text)  # `client_*`
    missing = [n for n in existing if not re.search(rf"\b{n}\b", text)]
    assert [] == sorted(n for n in missing if not n.startswith(tuple(families)))
