"""Reference pictures signed by their sender with Ed25519 (FORMAT.md section 12): the guard against another's face.

A receiver that trusts one public key shows no picture that this key did not sign for this pack, place and call, and
builds on none. Each picture, updates too, takes 64 bytes for that. Motion is not signed: use an authenticated channel
(DTLS, TLS) against somebody who changes packets. Needs the ``cryptography`` package, loaded when the first key is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BackendUnavailableError, SigningError
from .fields import crop_bytes, varint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
CONTEXT_MAX = 255  # bytes
_DOMAIN = b"neuralcodec reference 1\n"  # a signature of ours can never be one of anything else


def check_context(context: Any) -> None:
    """ValueError for what cannot be signed along with pictures."""
    if not isinstance(context, bytes | bytearray) or len(context) > CONTEXT_MAX:
        raise ValueError(f"signing_context is {context!r:.40}; expected at most {CONTEXT_MAX} bytes.")


def statement(
    pack_id: bytes,
    source: tuple[int, int],
    reference: int,
    codec: int,
    crop: Sequence[int],
    picture: bytes,
    context: bytes = b"",
    before: bytes = b"",
) -> bytes:
    """What is signed: everything that decides which face is shown where.

    source: width and height of the stream header. codec: without the SIGNED bit. picture: the coded picture without
    its signature. context: what both ends know of this call, so that pictures of another call are worth nothing.
    before: of an update, the digest of the picture that it follows (chain.py).
    """
    check_context(context)
    place = crop_bytes(crop) + varint(source[0]) + varint(source[1])
    digest = hashlib.sha256(before + picture).digest()
    about = place + bytes((len(context),)) + context
    return _DOMAIN + pack_id + bytes((reference, codec)) + digest + varint(len(picture)) + about


def sign(key: Ed25519PrivateKey, message: bytes) -> bytes:
    """64 bytes."""
    return key.sign(message)


def verify(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Whether ``key`` signed ``message``."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


# --- keys ------------------------------------------------------------------------------------------------------------


def generate_key(path: str | Path) -> str:
    """Write a new private key as PEM to ``path`` (readable by its owner alone) and the public one to ``path`` + ".pub".

    Returns the public key as 64 hexadecimal digits. Existing files are never replaced.
    """
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    secret, public = Path(path), Path(f"{path}.pub")
    for file in (secret, public):
        if os.path.lexists(file):
            raise SigningError(f"{file} exists; a key is never replaced. Give the new one another name.")
    key = Ed25519PrivateKey.generate()
    private_text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_text = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    made: list[Path] = []
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        for file, text, mode in ((secret, private_text, 0o600), (public, public_text, 0o666)):
            with os.fdopen(os.open(file, new, mode), "wb") as out:
                made.append(file)
                out.write(text)
    except BaseException as error:
        for half in made:  # of a full disk: an empty key would be in the way of the next one
            half.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SigningError(f"Cannot write {file}: {error.strerror or error}.") from error
        raise
    return public_hex(key.public_key())


def private_key(source: Any) -> Ed25519PrivateKey:
    """An Ed25519 private key from a PEM or OpenSSH file, 32 raw bytes, or the key object itself."""
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if isinstance(source, bytes) and len(source) == 32:
        return Ed25519PrivateKey.from_private_bytes(source)
    if isinstance(source, str | Path):
        data = _read(source)
        load = serialization.load_ssh_private_key if b"OPENSSH" in data else serialization.load_pem_private_key
        try:
            source = load(data, password=None)
        except Exception as error:  # the library raises ValueError, TypeError and its own
            raise SigningError(
                f"{source} is not a private key this can use ({type(error).__name__}); "
                "expected Ed25519 in PEM or OpenSSH form without a password, as 'neuralcodec keygen' writes it."
            ) from error
    if not isinstance(source, Ed25519PrivateKey):
        raise SigningError(f"The signing key is a {type(source).__name__}; expected an Ed25519 private key.")
    return source


def public_key(source: Any) -> Ed25519PublicKey:
    """An Ed25519 public key from 64 hexadecimal digits, a PEM or OpenSSH file, 32 raw bytes, or the key object."""
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if isinstance(source, str) and len(source) == 64:
        try:
            source = bytes.fromhex(source)
        except ValueError:
            pass  # a path, then
    if isinstance(source, bytes) and len(source) == 32:
        return Ed25519PublicKey.from_public_bytes(source)
    if isinstance(source, str | Path):
        data = _read(source)
        load = serialization.load_ssh_public_key if data.startswith(b"ssh-") else serialization.load_pem_public_key
        try:
            source = load(data)
        except Exception as error:
            raise SigningError(
                f"{source} is not a public key this can use ({type(error).__name__}); expected the .pub file that "
                "'neuralcodec keygen' writes, an OpenSSH one, or 64 hexadecimal digits."
            ) from error
    if not isinstance(source, Ed25519PublicKey):
        raise SigningError(f"The trusted sender is a {type(source).__name__}; expected an Ed25519 public key.")
    return source


def public_hex(key: Ed25519PublicKey) -> str:
    """The key as 64 hexadecimal digits, short enough to read to somebody."""
    return key.public_bytes_raw().hex()


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SigningError(f"Cannot read the key {path}: {error.strerror or error}.") from error


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise BackendUnavailableError(
            "Signed references need the cryptography package: pip install 'neuralcodec[sign]'."
        ) from error
    return serialization
