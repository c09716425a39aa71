"""Draws `docs/images/demo.svg`: what `make demo` printed, as a terminal shows it.

make demo 2>&1 | python docs/picture.py
"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).parent / "images" / "demo.svg"


def main() -> None:
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ make demo", style="bold"))
    for line in sys.stdin.read().splitlines()[1:]:
        console.print(Text.from_ansi(line))
    TARGET.parent.mkdir(exist_ok=True)
    picture = console.export_svg(title="msgservice: kill anything, lose nothing", unique_id="demo")
    # Whatever monospaced font the reader has will do: nothing is fetched from anywhere.
    TARGET.write_text(re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    main()
