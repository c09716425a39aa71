"""What security costs: a node that asks who comes, against one that does not.

    python -m bench.security                    # all three, in pairs
    python -m bench.security fanout --pairs 5
    python -m bench.security logins --seconds 10
    python -m bench.security rules --rounds 20

`fanout`: one producer and three receivers, over TLS, each with a password (SCRAM-SHA-256-PLUS) and
rules, against plain TCP without users; `send` and `send_many`. `logins`: how many connections a
second log in at one node and go again, whose record has the fewest iterations that are allowed
(what they cost is the client's), and the longest that the node's reactor was away meanwhile.
`rules`: the rate of `send` to a node of 1,000 users with 20 patterns each, against that of a node
where nobody is configured, both over plain TCP on this machine. Both nodes are there all the time,
and take turns, in short rounds; what the node's process has computed for a message is compared too,
which other work on the machine changes less than the rate.

Plain and secure runs alternate, and ratios are those of the two of a pair; the median is what
counts. Where a run has a figure at which it must not be, the last line says so.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import trustme

from bench.processes import Role, Stage, finish, stage

USER, PASSWORD = "bench", "a password of the benchmark"
FANOUT_MANY, FANOUT_SEND = 0.6, 0.7  # of plain, at least
LOGINS, GAP_MS = 200, 50.0  # a second, at least; at most
RULES = 0.95  # of the rate, and of the node's work, where nobody is configured, at least
USERS, PATTERNS = 1000, 20
ROUNDS, ROUND_MESSAGES = 12, 60_000  # of `rules`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["fanout", "logins", "rules"])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--messages", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    result: dict[str, Any] = {}
    if args.what in (None, "fanout"):
        result |= fanout(args.pairs, args.messages)
    if args.what in (None, "logins"):
        result |= logins(args.seconds)
    if args.what in (None, "rules"):
        result |= rules(args.rounds)
    result["missed"] = missed(result)
    finish(result)


def measure() -> dict[str, Any]:
    """Return all figures, of three pairs or some rounds each (`bench.__main__`)."""
    return fanout(3, 300_000) | logins(10.0) | rules(ROUNDS)


def missed(result: dict[str, Any]) -> list[str]:
    """Return which figures are not what they must be."""
    at_least = {
        "send_ratio": FANOUT_SEND,
        "send_many_ratio": FANOUT_MANY,
        "logins_s": LOGINS,
        "rules_ratio": RULES,
        "rules_cpu_ratio": RULES,
    }
    found = [
        f"{name} >= {least}" for name, least in at_least.items() if result.get(name, 9e9) < least
    ]
    if result.get("login_gap_ms", 0) > GAP_MS:
        found.append(f"login_gap_ms <= {GAP_MS}")
    return found


# --- fan-out


def fanout(pairs: int, messages: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, many in (("send", False), ("send_many", True)):
        plain, secure = [], []
        for number in range(pairs):
            kinds = [(plain, {}), (secure, {"tls": True, "users": 1})]
            for rates, options in kinds if number % 2 == 0 else reversed(kinds):
                rates.append(rate(messages * (2 if many else 1), many=many, receivers=3, **options))
        result |= compared(name, plain, secure)
    return result


def compared(name: str, base: list[float], other: list[float]) -> dict[str, Any]:
    ratios = [round(b / a, 3) for a, b in zip(base, other, strict=True)]
    return {
        f"{name}_ratio": statistics.median(ratios),
        f"{name}_ratios": ratios,
        f"{name}_base_messages_s": round(statistics.median(base)),
        f"{name}_messages_s": round(statistics.median(other)),
    }


def rate(
    count: int,
    *,
    many: bool = False,
    receivers: int = 3,
    tls: bool = False,
    users: int = 0,
    patterns: int = 1,
) -> float:
    """Return the messages a second from the first `send` to the last receiver's last message."""
    with stage() as made:
        _, address = secure_node(made, tls=tls, users=users, patterns=patterns)
        return play(made, address, count, many=many, receivers=receivers, login=bool(users))


def play(
    made: Stage, address: str, count: int, *, many: bool, receivers: int, login: bool
) -> float:
    """Send to a node, with processes of this round alone; return `rate`."""
    count -= count % 200
    who = {"user": USER, "password": PASSWORD} if login else {}
    takers = [
        made.start("receiver", address=address, name=f"{USER}.r{i}", count=count, **who)
        for i in range(receivers)
    ]
    for taker in takers:
        taker.line()
    producer = made.start(
        "producer", address=address, name=f"{USER}.p", count=count, many=many, **who
    )
    producer.line()
    producer.say("go")
    sent = producer.line()
    ends = [taker.line() for taker in takers]
    seconds = max([end["end"] for end in ends] + [sent["end"]]) - sent["start"]
    return float(count / seconds)


def secure_node(
    made: Stage,
    *,
    tls: bool,
    users: int,
    patterns: int = 1,
    iterations: int | None = None,
    data: str = "node",
) -> tuple[Role, str]:
    """Start a node; return it and its address, as a client dials it."""
    options: dict[str, Any] = {"users": users or None, "patterns": patterns}
    options["data"] = made.folder / data
    if users:
        options |= {"user": USER, "password": PASSWORD, "iterations": iterations}
    if not tls:
        return made.node(**options)
    key, chain, authority = certificates(made.folder)
    listen = f"tls:0:interface=127.0.0.1:privateKey={key}:certificate={chain}"
    node, address = made.node(listen=listen, **options)
    return node, f"{address}:trustRoots={authority}"


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Return files of a key, its certificate for 127.0.0.1, and the authority's."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = folder / "node.key", folder / "node.crt", folder / "ca.crt"
    issued.private_key_pem.write_to_path(str(files[0]))
    for number, pem in enumerate(issued.cert_chain_pems):
        pem.write_to_path(str(files[1]), append=number > 0)
    authority.cert_pem.write_to_path(str(files[2]))
    return files


# --- logins


def logins(seconds: float) -> dict[str, Any]:
    with stage() as made:
        node, address = secure_node(made, tls=False, users=1, iterations=4096)
        # Two, since a login costs its client more than its node.
        floods = [
            made.start("logins", address=address, user=USER, password=PASSWORD, seconds=seconds)
            for _ in range(2)
        ]
        for flood in floods:
            flood.line()
        before = node.ask("gap")  # from here on
        for flood in floods:
            flood.say("go")
        told = [flood.line() for flood in floods]
        after = node.ask("gap")
        count = sum(each["count"] for each in told)
        cpu_s = sum(each["cpu_s"] for each in told)
        return {
            "logins": count,
            "logins_failed": sum(each["failed"] for each in told),
            "logins_s": round(count / max(each["seconds"] for each in told)),
            "login_gap_ms": after["gap_ms"],
            # What a login, its session and its end cost, whoever else uses the machine.
            "login_node_cpu_ms": round((after["cpu_s"] - before["cpu_s"]) * 1000 / count, 2),
            "login_client_cpu_ms": round(cpu_s * 1000 / count, 2),
        }


# --- rules


def rules(rounds: int, messages: int = ROUND_MESSAGES) -> dict[str, Any]:
    with stage() as made:
        none, open_address = secure_node(made, tls=False, users=0, data="none")
        many, address = secure_node(made, tls=False, users=USERS, patterns=PATTERNS, data="many")
        kinds = [(none, open_address, False), (many, address, True)]
        rates: dict[Role, list[float]] = {none: [], many: []}
        per_cpu: dict[Role, list[float]] = {none: [], many: []}
        for number in range(-1, rounds):  # the first warms both up, and does not count
            for node, where, login in kinds if number % 2 == 0 else reversed(kinds):
                before = node.ask("used")["cpu_s"]
                begun = len(made.roles)
                rate = play(made, where, messages, many=False, receivers=1, login=login)
                for role in made.roles[begun:]:
                    role.stop()
                del made.roles[begun:]
                used = node.ask("used")["cpu_s"] - before
                if number >= 0:
                    rates[node].append(rate)
                    per_cpu[node].append(messages / used)
        cpu = compared("rules_cpu", per_cpu[none], per_cpu[many])
        return compared("rules", rates[none], rates[many]) | {
            "rules_cpu_ratio": cpu["rules_cpu_ratio"],
            "rules_cpu_ratios": cpu["rules_cpu_ratios"],
            "rules_base_node_us": round(1e6 / cpu["rules_cpu_base_messages_s"], 2),
            "rules_node_us": round(1e6 / cpu["rules_cpu_messages_s"], 2),
        }


if __name__ == "__main__":
    main()
