"""manifest.json.sig: an ed25519 signature over the bytes of manifest.json, and so over every file and the version.

Keys are PEM files as OpenSSL writes them, and `openssl pkeyutl -verify -rawin` checks a signature without us.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.delivery.manifest import MANIFEST
from pipeline.errors import FailedError, UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = f"{MANIFEST}.sig"
_INSTALL = "cryptography is not installed; needed pip install 'forgeline[sign]'"


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises UserError when there is no such key without a passphrase."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError:
        raise UserError(_INSTALL) from None
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError):  # the latter for one with a passphrase
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: is not an ed25519 private key without a passphrase; needed a PEM file")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Raises UserError when there is no such key."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError:
        raise UserError(_INSTALL) from None
    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: is not an ed25519 public key; needed a PEM file")
    return key


def check(key: Ed25519PublicKey, manifest: bytes, signature: bytes | None, where: str) -> None:
    """Raise FailedError, beginning with `where`, unless the holder of the key signed these bytes."""
    from cryptography.exceptions import InvalidSignature

    if signature is None:
        raise FailedError(f"{where}: is not signed; needed the signature of the key that was given")
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise FailedError(f"{where}: is not signed by the key that was given") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
