"""The lines that are printed: for people one for each event, for programs the same as JSON.

Each event has a name and fields; what is said of it to people stands in one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from rich.text import Text

from msgservice.cli.output import CannotPrint, counted, out
from msgservice.core.reasons import shown

Fields = Mapping[str, Any]
SEPARATOR = ", "


class Teller:
    """Prints events. `broken`: called once with the error where nothing can be printed any more."""

    def __init__(
        self, *, as_json: bool, wall: Callable[[], int], broken: Callable[[BaseException], None]
    ) -> None:
        self._as_json = as_json
        self._wall = wall
        self._broken = broken
        self._is_broken = False

    def tell(self, event: str, **fields: Any) -> None:
        """Print one event."""
        if self._is_broken:
            return
        at = self._wall()
        try:
            if self._as_json:
                out(msgspec.json.encode({"event": event, "at": at, **fields}))
            else:
                out(_line(at, event, fields))
        except (CannotPrint, SystemExit) as error:
            self._is_broken = True
            self._broken(error)


def _line(at: int, event: str, fields: Fields) -> Text:
    if event in WHOLE:
        return Text("\n".join(["", *WHOLE[event](fields), ""]))
    moment = datetime.fromtimestamp(at / 1000).astimezone().strftime("%H:%M:%S")
    who, text = SAID[event](fields)
    is_bad = event in ("killed", "rejected", "gone") or (event == "refused" and not fields["again"])
    label = shown(fields.get("message", ""))
    return Text(f"{moment}  {label:<11} {who:<9} {text}", style="bold" if is_bad else "")


def _sent(fields: Fields) -> tuple[str, str]:
    names = " and ".join(fields["receivers"]) or "nobody"
    return "sent", f"{fields['subject']}: on disk at log:{fields['position']}, for {names}"


def _took(fields: Fields) -> tuple[str, str]:
    late = f" after {fields['seconds']:g} s" if fields["seconds"] else ""
    return fields["receiver"], f"took it{late}{_nth(fields)}"


def _refused(fields: Fields) -> tuple[str, str]:
    again = f"tried again in {fields['again']:g} s" if fields["again"] else "a dead letter now"
    attempt = f"attempt {fields['attempt']} of {fields['attempts']}"
    return fields["receiver"], f"refused it ({fields['reason']}): {attempt}, {again}"


def _rejected(fields: Fields) -> tuple[str, str]:
    return fields["receiver"], f"rejected it ({fields['reason']}): a dead letter at once"


def _killed(fields: Fields) -> tuple[str, str]:
    again = f"its process begins anew in {fields['again']:g} s"
    return fields["receiver"], f"was killed (SIGKILL) while it had the message; {again}"


def _gone(fields: Fields) -> tuple[str, str]:
    trouble = f" ({shown(fields['trouble'])})" if fields["trouble"] else ""
    again = f"it begins anew in {fields['again']:g} s"
    return fields["receiver"], f"process {fields['pid']} has ended, not by us{trouble}; {again}"


def _back(fields: Fields) -> tuple[str, str]:
    return fields["receiver"], f"is connected, process {fields['pid']}"


def _receipt(fields: Fields) -> tuple[str, str]:
    states = [
        f"{name}: {state['status']}" + (f" ({shown(state['reason'])})" if state["reason"] else "")
        for name, state in fields["receivers"].items()
    ]
    return "receipt", SEPARATOR.join(states) or "for nobody"


def _held(fields: Fields) -> tuple[str, str]:
    return "", f"no more is sent: {counted(fields['open'], 'message')} are not final yet"


def _nth(fields: Fields) -> str:
    return f" (attempt {fields['attempt']})" if fields["attempt"] > 1 else ""


def _ready(fields: Fields) -> list[str]:
    node = fields["node"]
    option = "" if fields["is_default"] else f" --node {node}"
    first, second = fields["receivers"]
    chaos = (
        "none: every message is taken; --chaos kills, delays and refuses"
        if fields["seed"] is None
        else f"they refuse, delay, and are killed; --seed {fields['seed']} draws the same again"
    )
    kept = "" if fields["is_kept"] else ", removed at the end"
    told = [
        ("node", node),
        ("page", fields["page"]),
        ("data", f"{fields['data']}{kept}"),
        ("receivers", f"{first}, in this process, in order;"),
        ("", f"{second}, in a process of its own ({fields['pid']}), in no order"),
        ("send", f"msgservice send {fields['subject']} 'one espresso'{option}"),
        ("look", f"msgservice why dev-{fields['first']}{option}"),
        ("", f"msgservice dead list {second}{option}"),
        ("chaos", chaos),
        ("stop", "Ctrl-C"),
    ]
    return [f"  {name:<11} {what}".rstrip() for name, what in told]


def _account(fields: Fields) -> list[str]:
    columns = ("sent", "delivered", "dead", "waiting", "other")
    width = max(len(name) for name in ("receiver", *fields["receivers"]))
    lines = [f"  {'receiver':<{width}}" + "".join(f"{column:>11}" for column in columns)]
    for name, row in fields["receivers"].items():
        lines.append(f"  {name:<{width}}" + "".join(f"{row[column]:>11,}" for column in columns))
    killed = f", {counted(fields['kills'], 'kill')}" if fields["kills"] else ""
    own = f"{counted(fields['sent'], 'message')} of its own{killed}"
    wrong = [f"  {shown(sentence)}" for sentence in fields["discrepancies"]]
    return [*lines, *wrong, f"  {own}: it {'adds up' if not wrong else 'does not add up'}"]


# Event -> who and what, in one line; or lines of their own.
SAID: dict[str, Callable[[Fields], tuple[str, str]]] = {
    "sent": _sent,
    "took": _took,
    "refused": _refused,
    "rejected": _rejected,
    "killed": _killed,
    "gone": _gone,
    "back": _back,
    "receipt": _receipt,
    "held": _held,
}
WHOLE: dict[str, Callable[[Fields], list[str]]] = {"ready": _ready, "account": _account}
