"""Two nodes in one process: twistd -ny pair.tac. See left.toml and right.toml beside this file."""

from pathlib import Path
from msgservice.tap import make_application

application = make_application(*(Path(__file__).with_name(f) for f in ("left.toml", "right.toml")))
