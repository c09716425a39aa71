"""`[tls]`: what addresses leave out, what may stand there, and certificates that expire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, formatEvent

from msgservice.cli.check_config import check_config
from msgservice.config.config import Flags, load_config
from msgservice.errors import BadAddress, ConfigError
from msgservice.limits import Limits
from msgservice.records import Reread
from msgservice.transport.addresses import parse_address
from msgservice.transport.registry import Transports
from msgservice.transport.tcp.profiles import TlsFiles, TlsProfile, TlsProfiles
from msgservice.transport.tcp.tls import Tls
from tests.kit.certificates import Authority
from tests.kit.channels import Recorder

DAY_MS = 86_400_000
PROFILES = TlsProfiles(
    default=TlsProfile(
        certificate="own.crt", private_key="own.key", trust_roots="ca", client_roots="clients"
    ),
    named={
        "bare": TlsProfile(),
        "partner": TlsProfile(certificate="both.pem", trust_roots="theirs", minimum_version="1.3"),
    },
)


def files(certificate: str | None, key: str | None, roots: str | None, minimum: str) -> TlsFiles:
    return TlsFiles(certificate=certificate, private_key=key, roots=roots, minimum_version=minimum)


@pytest.mark.parametrize(
    ("dialled", "expected"),
    [
        ("tls:h:1", files("own.crt", "own.key", "ca", "1.2")),
        ("tls:h:1:trustRoots=x", files("own.crt", "own.key", "x", "1.2")),
        ("tls:h:1:minimumVersion=1.3", files("own.crt", "own.key", "ca", "1.3")),
        # A certificate and a key are a pair: what has one of them has both.
        ("tls:h:1:certificate=c.pem", files("c.pem", "c.pem", "ca", "1.2")),
        ("tls:h:1:privateKey=c.pem", files("c.pem", "c.pem", "ca", "1.2")),
        ("tls:h:1:certificate=c:privateKey=k", files("c", "k", "ca", "1.2")),
        # A profile is whole: nothing of the default is added to it.
        ("tls:h:1:profile=bare", files(None, None, None, "1.2")),
        ("tls:h:1:profile=partner", files("both.pem", "both.pem", "theirs", "1.3")),
        (
            "tls:h:1:profile=partner:minimumVersion=1.2",
            files("both.pem", "both.pem", "theirs", "1.2"),
        ),
    ],
)
def test_what_an_address_leaves_out_is_as_its_profile_says(
    dialled: str, expected: TlsFiles
) -> None:
    assert expected == PROFILES.files(parse_address(dialled), listening=False)


@pytest.mark.parametrize(
    ("listened", "expected"),
    [
        ("tls:1", files("own.crt", "own.key", "clients", "1.2")),
        ("tls:1:trustRoots=x", files("own.crt", "own.key", "x", "1.2")),
        ("tls:1:certKey=c.pem", files("c.pem", "c.pem", "clients", "1.2")),
        ("tls:1:profile=partner", files("both.pem", "both.pem", None, "1.3")),
    ],
)
def test_a_listener_asks_for_certificates_by_client_roots_alone(
    listened: str, expected: TlsFiles
) -> None:
    assert expected == PROFILES.files(parse_address(listened), listening=True)


@pytest.mark.parametrize(
    ("dialled", "reason"),
    [
        ("tls:h:1:profile=partnr", r"no profile \[tls.partnr\] \(known: bare, partner\)"),
        ("tls:h:1:minimumVersion=1.1", "minimumVersion must be 1.2 or 1.3, not '1.1'"),
        ("tls:h:1:minimumVersion=", "minimumVersion must be 1.2 or 1.3, not ''"),
    ],
)
def test_a_profile_or_version_that_cannot_be_is_refused(dialled: str, reason: str) -> None:
    with pytest.raises(BadAddress, match=reason):
        Transports(tls=PROFILES).tcp.check_dial(dialled)


def test_a_profile_is_for_addresses_with_tls() -> None:
    with pytest.raises(BadAddress, match="unknown option 'profile'"):
        Transports(tls=PROFILES).tcp.check_dial("tcp:h:1:profile=bare")


# --- the configuration


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue("localhost")
    made.issue("partner")
    return made


TLS = """
[listen]
tcp = ["tls:7411", "tls:7412:profile=partner"]

[tls]
certificate = "localhost.crt"
private_key = "localhost.key"
trust_roots = "ca.pem"
warn_days = 14

[tls.partner]
certificate = "partner.crt"
private_key = "partner.key"
client_roots = "ca.pem"
minimum_version = "1.3"

[[receiver]]
name = "billing"
address = "tls:billing.example:7420"
subjects = []
"""


def written(authority: Authority, text: str) -> Path:
    file = authority.folder / "node.toml"
    file.write_text(text)
    return file


def test_files_are_taken_from_the_folder_of_the_configuration(authority: Authority) -> None:
    folder = authority.folder
    tls = load_config(written(authority, TLS), Flags()).tls
    own = TlsProfile(
        certificate=f"{folder}/localhost.crt",
        private_key=f"{folder}/localhost.key",
        trust_roots=f"{folder}/ca.pem",
    )
    partner = TlsProfile(
        certificate=f"{folder}/partner.crt",
        private_key=f"{folder}/partner.key",
        client_roots=f"{folder}/ca.pem",
        minimum_version="1.3",
    )
    assert TlsProfiles(default=own, named={"partner": partner}, warn_days=14) == tls


@pytest.mark.parametrize(
    ("replaced", "by", "told"),
    [
        ('"localhost.crt"', '"absent.crt"', "6: tls.certificate: cannot read {folder}/absent.crt"),
        ('"localhost.key"', '"partner.key"', "7: tls.private_key: the key in {folder}/partner.key"),
        ('"ca.pem"', '"localhost.key"', "8: tls.trust_roots: {folder}/localhost.key holds no"),
        ("= 14", "= -1", "9: tls.warn_days: must be from 0 to 3650, not -1.0"),
        ("= 14", "= nan", "9: tls.warn_days: must be from 0 to 3650, not nan"),
        ("warn_days", "warn_day", "9: tls.warn_day: unknown key, did you mean 'warn_days'?"),
        ('"1.3"', '"1.1"', '15: tls.partner.minimum_version: must be "1.2" or "1.3", not "1.1"'),
        ('"1.3"', "1.3", "15: tls.partner.minimum_version: must be a string, not 1.3"),
        ("client_roots", "client_root", "14: tls.partner.client_root: unknown key, did you mean"),
        ("[tls.partner]", '[tls."a b"]', "11: tls.a b: bad name 'a b'"),
        ("profile=partner", "profile=partnr", "3: listen.tcp: bad address 'tls:7412:profile="),
        (
            'private_key = "localhost.key"',
            "",
            "certificate: {folder}/localhost.crt holds no private",
        ),
        ("billing.example:7420", "billing.example:7420:profile=x", "19: receiver.address: bad"),
        (
            '"partner.crt"',
            r'"x\u0000y"',
            "12: tls.partner.certificate: cannot read {folder}/x\0y: a",
        ),
        (
            '"ca.pem"',
            r'"x\u0000y"',
            "tls.trust_roots: cannot read {folder}/x\0y: a path has no zero",
        ),
        ('"partner.crt"', '""', "12: tls.partner.certificate: must name a file"),
    ],
)
def test_what_is_wrong_with_it_is_told_where_it_stands(
    authority: Authority, replaced: str, by: str, told: str
) -> None:
    assert replaced in TLS
    with pytest.raises(ConfigError) as caught:
        load_config(written(authority, TLS.replace(replaced, by, 1)), Flags())
    wanted = told.format(folder=authority.folder)
    assert any(wanted in problem for problem in caught.value.problems), caught.value.problems


def test_a_listener_without_a_certificate_is_told_where_one_may_stand(authority: Authority) -> None:
    file = written(authority, '[listen]\ntcp = "tls:7411"\n')
    with pytest.raises(ConfigError, match=r"privateKey=FILE is needed .*, here or in \[tls\]"):
        load_config(file, Flags())


def test_check_config_says_what_holds(authority: Authority) -> None:
    told = CliRunner().invoke(check_config, [str(written(authority, TLS))])
    assert told.exit_code == 0
    folder = authority.folder
    words = " ".join(told.output.split())
    assert (
        f"tls certificate {folder}/localhost.crt; private_key {folder}/localhost.key;"
        f" trust_roots {folder}/ca.pem; TLS 1.2 at least; warned of 14 days before the end"
        f" tls.partner: certificate {folder}/partner.crt" in words
    )


# --- certificates that expire


class Watch:
    """The warnings of a certificate that is in use, as days go by."""

    def __init__(self, authority: Authority, logged: list[LogEvent]) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)  # as certificates have it
        self._authority = authority
        self._logged = logged
        self.profiles = TlsProfiles(warn_days=10)
        self.tls = Tls(self.profiles)
        self._kept: list[object] = []

    def issue(self, *, days: float, begun: float = 100) -> None:
        begins, ends = self.now - timedelta(days=begun), self.now + timedelta(days=days)
        self._authority.issue("localhost", begins=begins, ends=ends)

    def use(self, more: str = "") -> None:
        folder = self._authority.folder
        address = f"tls:1:privateKey={folder}/localhost.key:certificate={folder}/localhost.crt"
        self._kept.append(self.tls.server(parse_address(address + more), self.wall))

    def wall(self) -> int:
        return int(self.now.timestamp() * 1000)

    def warnings(self) -> list[str]:
        """Return what is warned of now, without the address."""
        self._logged.clear()
        self.tls.tell_expiring()
        warned = [event for event in self._logged if event["log_level"].name == "warn"]
        return [formatEvent(event).partition(" (tls:")[0] for event in warned]


@pytest.fixture
def watch(authority: Authority, logged: list[LogEvent]) -> Watch:
    return Watch(authority, logged)


def test_a_certificate_is_warned_of_once_a_day_until_it_is_renewed(
    watch: Watch, authority: Authority
) -> None:
    file = authority.folder / "localhost.crt"
    watch.issue(days=12)
    end = watch.now + timedelta(days=12)
    watch.use()
    assert [] == watch.warnings()
    watch.now += timedelta(days=2.5)
    soon = f"the certificate in {file} expires in 9 day(s), on {end:%Y-%m-%d %H:%M} UTC"
    assert [soon] == watch.warnings()
    watch.now += timedelta(hours=23)
    assert [] == watch.warnings()
    watch.now += timedelta(hours=2)
    assert [soon.replace("9 day", "8 day")] == watch.warnings()
    watch.now = end + timedelta(days=1)
    over = f"the certificate in {file} has expired, on {end:%Y-%m-%d %H:%M} UTC"
    assert [over] == watch.warnings()
    watch.issue(days=300)
    watch.now += timedelta(days=2)
    assert [] == watch.warnings()  # though nobody has connected, or asked for it to be read


def test_two_listeners_with_one_certificate_are_one_warning(watch: Watch) -> None:
    watch.issue(days=3)
    watch.use()
    watch.use(":interface=127.0.0.2")
    assert 1 == len(watch.warnings())


def test_what_lives_for_a_week_is_not_warned_of_for_all_of_it(watch: Watch) -> None:
    watch.issue(days=6, begun=1)
    watch.use()
    assert [] == watch.warnings()
    watch.now += timedelta(days=4.5)
    assert ["expires in 1 day"] == [
        w.partition("crt ")[2].partition("(")[0] for w in watch.warnings()
    ]


def test_a_certificate_that_is_not_valid_yet_is_warned_of(
    watch: Watch, authority: Authority
) -> None:
    watch.issue(days=30, begun=-1)
    watch.use()
    (told,) = watch.warnings()
    assert told.startswith(
        f"the certificate in {authority.folder}/localhost.crt is not valid before"
    )


def test_of_authorities_the_last_one_is_warned_of(watch: Watch, authority: Authority) -> None:
    watch.issue(days=300)
    ends = [watch.now + timedelta(days=days) for days in (-5, 20, 5)]
    each = [
        authority.issue("authority", begins=watch.now - timedelta(days=100), ends=end)[
            1
        ].read_bytes()
        for end in ends
    ]
    roots = authority.folder / "roots.crt"
    roots.write_bytes(b"".join(each))
    watch.use(f":trustRoots={roots}")
    assert [] == watch.warnings()
    watch.now += timedelta(days=11)
    last = f"the last authority in {roots} expires in 9 day(s)"
    assert [last] == [text.partition(",")[0] for text in watch.warnings()]


def test_each_new_connection_looks_too(watch: Watch, logged: list[LogEvent]) -> None:
    watch.issue(days=3)
    watch.use()
    (creator,) = watch._kept
    creator.serverConnectionForTLS(None)  # type: ignore[attr-defined]  # of a server
    assert 1 == sum("expires in" in formatEvent(event) for event in logged)


def test_looking_at_an_address_warns_of_nothing_and_keeps_nothing(
    watch: Watch, authority: Authority, logged: list[LogEvent]
) -> None:
    watch.issue(days=-1)
    folder = authority.folder
    address = f"tls:0:privateKey={folder}/localhost.key:certificate={folder}/localhost.crt"
    tcp = Transports().tcp
    tcp.check_listen(address)
    assert ([], []) == (tcp.reload(), logged)
    reactor = MemoryReactorClock()
    tcp.listen(reactor, address, Recorder, Limits())
    assert [Reread(address, False, None)] == tcp.reload()
