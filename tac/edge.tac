"""An edge that keeps everything while its centre is away: twistd -ny tac/edge.tac.

The centre is here only so that the example runs by itself: elsewhere it is a node of its own, and
edge.toml has its address (docs/chains.md).
"""

from pathlib import Path

from msgservice.tap import make_application

application = make_application(*(Path(__file__).with_name(f) for f in ("edge.toml", "centre.toml")))
