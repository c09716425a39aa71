"""The table of operations on the page of the protocol is the registry's, field by field.

`python -m tests.docs.test_administration` prints it as it has to be.
"""

from typing import Any, get_args, get_origin

import msgspec

from msgservice.administration import OPERATIONS, Operation
from tests.docs.test_reference_pages import DOCS

HEADING = "| subject | what it does | asks | answers |"


def asked(operation: Operation[Any, Any]) -> str:
    fields = msgspec.structs.fields(operation.asks)
    needed = [f"`{field.name}`" for field in fields if field.required]
    optional = [f"`{field.name}`" for field in fields if not field.required]
    told = ", ".join(needed)
    if optional:
        told += f"{', ' if needed else ''}optional {', '.join(optional)}"
    return told or "`{}`"


def answered(struct: type[msgspec.Struct]) -> str:
    told = []
    for field in msgspec.structs.fields(struct):
        row = get_args(field.type)[-1] if get_origin(field.type) in (list, dict) else None
        of_each = f": of each {answered(row)}" if msgspec.inspect.is_struct_type(row) else ""
        told.append(f"`{field.name}`{of_each}")
    return ", ".join(sorted(told, key=lambda one: ": of each" in one))


def table() -> str:
    rows = [
        f"| `{one.right}` | {one.sentence} | {asked(one)} | {answered(one.answers)} |"
        for one in OPERATIONS
    ]
    return "\n".join([HEADING, "|---|---|---|---|", *rows])


def test_the_table_of_operations_is_that_of_the_registry() -> None:
    page = (DOCS / "protocol.md").read_text()
    there = page.partition("\n## Administration\n")[2].partition("\n|")[2].partition("\n\n")[0]
    assert table().splitlines() == f"|{there}".splitlines()


def test_each_field_has_a_type_that_is_told_to_programs() -> None:
    """What programs are generated from: a schema of each struct can be made."""
    structs = {struct for one in OPERATIONS for struct in (one.asks, one.answers)}
    _, components = msgspec.json.schema_components(structs)
    assert {struct.__name__ for struct in structs} <= set(components)


if __name__ == "__main__":
    print(table())
