"""Certificates of an authority of our own, as files."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import trustme


class Authority:
    """Certificates as files, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))

    def issue(
        self, name: str, *, begins: datetime | None = None, ends: datetime | None = None
    ) -> tuple[Path, Path]:
        """Write a key and a certificate for this name, and return their files."""
        issued = self.ca.issue_cert(name, not_before=begins, not_after=ends)
        key, chain = self.folder / f"{name}.key", self.folder / f"{name}.crt"
        issued.private_key_pem.write_to_path(str(key))
        for number, pem in enumerate(issued.cert_chain_pems):
            pem.write_to_path(str(chain), append=number > 0)
        return key, chain

    def listener(self, more: str = "") -> str:
        key, chain = self.issue("localhost")
        return f"tls:0:privateKey={key}:certificate={chain}{more}"
