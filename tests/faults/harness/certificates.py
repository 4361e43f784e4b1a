"""Certificates of servers, sound and not, made by openssl when they are needed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Certificate:
    """What a server shows, and the key to it: files in PEM."""

    chain: Path
    key: Path


class Authority:
    """Signs certificates of servers; who trusts ``cafile`` trusts those.

    Args:
        directory: for all files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._own = self.self_signed("authority")
        self.cafile = self._own.chain

    def self_signed(self, name: str) -> Certificate:
        """A certificate that vouches for itself."""
        made = self._files(name)
        _openssl(
            "req",
            "-x509",
            *_NEW_KEY,
            "-keyout",
            made.key,
            "-out",
            made.chain,
            "-subj",
            f"/CN={name}",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-days",
            2,
        )
        return made

    def signed(self, name: str, *, address: str = "IP:127.0.0.1", days: int = 2) -> Certificate:
        """A certificate by this authority.

        Args:
            address: whom it is for.
            days: from now until it expires; -1 for yesterday.
        """
        made = self._files(name)
        request, extensions = made.chain.with_suffix(".csr"), made.chain.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={address}\n")
        _openssl("req", *_NEW_KEY, "-keyout", made.key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self._own.chain,
            "-CAkey",
            self._own.key,
            "-CAcreateserial",
            "-days",
            days,
            "-extfile",
            extensions,
            "-out",
            made.chain,
        )
        return made

    def _files(self, name: str) -> Certificate:
        return Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")


def _openssl(*words: object) -> None:
    command = ["openssl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
