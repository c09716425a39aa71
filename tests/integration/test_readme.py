"""What the README tells a stranger to type, typed."""

import re
import shlex
import signal
from pathlib import Path

from tests.integration.command import Command
from tests.integration.daemon import BIN, running

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()


def blocks(language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_tour_works_as_it_is_written(msgservice: Command) -> None:
    typed = [line for block in blocks() for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in typed if line.startswith(".venv/bin/msgservice ")]
    *_, listen, first, second, look = commands
    listening: list[str | Path] = [BIN / "msgservice", *listen, "--node", msgservice.node]
    with running(*listening, cwd=msgservice.folder) as billing:
        while "billing" not in msgservice("receivers", "list").out:
            pass
        assert "stored at log:" in msgservice(*first).out
        billing.wait_for("one espresso")
        billing.send(signal.SIGINT)
        billing.ended()
    assert msgservice(*second).code == 0
    assert re.search(r"billing +orders\.> +away [0-9]+ [a-z]+ +1 ", msgservice(*look).out)
    with running(*listening, cwd=msgservice.folder) as billing:
        billing.wait_for("one macchiato")


def test_the_programs_work_as_they_are_written(msgservice: Command) -> None:
    producer, receiver = (
        block.replace("tcp:127.0.0.1:7410", msgservice.node) for block in blocks("python")
    )
    assert msgservice.node in producer
    assert msgservice.node in receiver
    (msgservice.folder / "producer.py").write_text(producer)
    (msgservice.folder / "receiver.py").write_text(receiver)
    with running("python", "receiver.py", cwd=msgservice.folder) as receiving:
        while "billing" not in msgservice("receivers", "list").out:
            pass
        with running("python", "producer.py", cwd=msgservice.folder) as producing:
            producing.wait_for(r"'billing': <Status\.ACKNOWLEDGED")
            assert producing.ended() == 0
        receiving.wait_for(r"orders\.new \{'id': 17\}")
        assert receiving.stop() in (0, -signal.SIGTERM)


def test_every_page_that_is_named_exists() -> None:
    for page in re.findall(r"\]\(([\w/.]+\.md)\)", README):
        assert (CHECKOUT / page).exists(), page
