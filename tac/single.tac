"""One node: twistd -ny single.tac. What it does is in single.toml beside this file."""

from pathlib import Path
from msgservice.tap import make_application

application = make_application(Path(__file__).with_name("single.toml"))
