"""Site keys: Ed25519 key pairs (RFC 8032) that sign derived objects, as PEM files.

A key goes by its id, the first 16 hex digits of the SHA-256 of the 32 bytes of its public half. Files of private keys
have mode 0600, others are refused. Keys are never logged or printed, but for public halves where they are asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medenhance_dicom.errors import ConfigurationError, OutputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_PEM = re.compile(rb"-----BEGIN (PRIVATE|PUBLIC) KEY-----[^-]+-----END \1 KEY-----")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class PublicKey:
    """Tells whether a signature is its key's."""

    id: str
    key: Ed25519PublicKey

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` (64 bytes) was made over `message` with this key."""
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def pem(self) -> str:
        """SubjectPublicKeyInfo, as `openssl pkey -pubin` reads it."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class SigningKey:
    """A private key. It has no representation that shows it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = _public(key.public_key())

    @property
    def id(self) -> str:
        """Of its public half."""
        return self.public.id

    def sign(self, message: bytes) -> bytes:
        """64 bytes, the same for the same message."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey({self.id})"


def create_key(file: Path) -> PublicKey:
    """Make a key pair: the private key in `file`, of mode 0600, the public one beside it with `.pub` appended.

    Raises:
        OutputError: One of them cannot be written, or is there already.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    made = Ed25519PrivateKey.generate()
    key = SigningKey(made)
    _create(file.with_name(f"{file.name}.pub"), key.public.pem().encode(), 0o644)
    _create(file, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    return key.public


def load_signing_key(place: Path) -> SigningKey:
    """The private key of a file; of a folder, the one in the file whose name comes last.

    Raises:
        ConfigurationError: There is none, it is not Ed25519, or others than its owner may read it.
    """
    found = [(file, pem) for file in _files(place) for kind, pem in _blocks(file) if kind == b"PRIVATE"]
    if not found:
        raise ConfigurationError(f"{place}: no private key")
    return _signing(*found[-1])


def load_public_keys(place: Path) -> dict[str, PublicKey]:
    """Key id -> public key, of all the keys in a file or folder; a private key stands for its public half.

    Raises:
        ConfigurationError: There is none, or one is not Ed25519, or is private and others than its owner may read it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = {}
    for file in _files(place):
        for kind, pem in _blocks(file):
            if kind == b"PRIVATE":
                found = _signing(file, pem).public
            else:
                try:
                    loaded = load_pem_public_key(pem)
                except (ValueError, UnsupportedAlgorithm):
                    loaded = None
                if not isinstance(loaded, Ed25519PublicKey):
                    raise ConfigurationError(f"{file}: not an Ed25519 public key")
                found = _public(loaded)
            keys[found.id] = found
    if not keys:
        raise ConfigurationError(f"{place}: no key")
    return keys


def _public(key: Ed25519PublicKey) -> PublicKey:
    return PublicKey(hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16], key)


def _signing(file: Path, pem: bytes) -> SigningKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise ConfigurationError(f"{file} is open to others; a private key needs mode 0600")
    try:
        loaded = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        loaded = None
    if not isinstance(loaded, Ed25519PrivateKey):
        raise ConfigurationError(f"{file}: not an Ed25519 private key")
    return SigningKey(loaded)


def _files(place: Path) -> list[Path]:
    """The file, or the files of the folder by name."""
    if not place.is_dir():
        return [place]
    return sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))


def _blocks(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys of a file: b"PRIVATE" or b"PUBLIC", and the PEM block."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES)
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    return ((match[1], match[0]) for match in _PEM.finditer(content))


def _create(file: Path, content: bytes, mode: int) -> None:
    """A new file, on the disk."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            os.fchmod(handle, mode)  # whatever the umask
            os.write(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OutputError(f"{file}: {error.strerror}") from None
