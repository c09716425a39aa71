"""Runs one target of coverage-guided fuzzing: `python -m tests.fuzz TARGET [libFuzzer options]`.

With no folder or file among the options the corpus is `.fuzz/corpus/TARGET`, filled with the
target's own seeds first (FUZZ_FOLDER in the environment: another folder than `.fuzz`). A file among
them is run alone, without a fuzzer: so a crash is looked at.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ.get("FUZZ_FOLDER", ".fuzz"))
# An input that takes so many seconds is a finding: none should take one, but machines stand still.
TIMEOUT = 60
TARGETS = (
    "datagrams",
    "keys",
    "frames",
    "config",
    "logins",
    "http",
    "planted_error",
    "planted_twice",
)


def fill(folder: Path, seeds: list[bytes]) -> None:
    """Write the seeds that are not there yet, named as the fuzzer names its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = folder / hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        if not path.exists():
            path.write_bytes(seed)


def main(arguments: list[str]) -> None:
    """Run a target."""
    if not arguments or arguments[0] not in TARGETS:
        raise SystemExit(f"usage: python -m tests.fuzz {{{'|'.join(TARGETS)}}} [options]")
    name, *options = arguments
    places = [Path(option) for option in options if not option.startswith("-")]
    if places and all(place.is_file() for place in places):
        from tests.fuzz.targets import load

        run, _ = load(name)
        for place in places:
            run(place.read_bytes())
        return

    import atheris

    with atheris.instrument_imports(include=["msgservice"]):
        from tests.fuzz.targets import load

        run, seeds = load(name)
    if not places:
        corpus = FOLDER / "corpus" / name
        fill(corpus, list(seeds()))
        options.append(str(corpus))
    if not any(option.startswith("-artifact_prefix=") for option in options):
        options.insert(0, f"-artifact_prefix={FOLDER}/{name}-")
    defaults = [f"-timeout={TIMEOUT}", "-max_len=2000", "-rss_limit_mb=1024"]
    atheris.Setup([sys.argv[0], *defaults, *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
