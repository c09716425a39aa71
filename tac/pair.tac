"""Two nodes in one process that pass everything on to each other: twistd -ny tac/pair.tac.

What is sent to either, at port 7410 or 7411, reaches the receivers of both (docs/chains.md).
"""

from pathlib import Path

from msgservice.tap import make_application

application = make_application(*(Path(__file__).with_name(f) for f in ("left.toml", "right.toml")))
