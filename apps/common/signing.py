"""Keys, canonical JSON and Ed25519 signatures.

    create_key(folder / "key.pem")         # owner-only; public.pem beside it
    value = sign(content, load_key(folder / "key.pem"))
    check(content, value, load_public(folder / "public.pem"))

What is signed are the bytes of `canonical(content)`: RFC 8785 (JCS) for objects that
hold text, integers, true, false, null, lists and objects. No fractions: those are text.
"""

import base64
import binascii
import json
import os
import secrets
import stat
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsekit import atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

LARGEST = 2**53 - 1  # beyond, readers of JSON that use doubles see another number
DEEPEST = 20
MOST_KEY_BYTES = 10_000


def canonical(content: Any) -> bytes:
    r"""The one spelling of a JSON value that is signed.

    UTF-8 without a byte order mark; no white space between tokens; keys sorted by code
    point, printable ASCII only; integers in decimal, at most 2^53 - 1 in size; in text
    only these are escaped: \" \\ \b \f \n \r \t, and other characters below U+0020 as
    \u00xx in lower case. This is RFC 8785 for what is admitted here.

    Raises ValueError for a fraction, a larger integer, another type, a lone surrogate,
    a key that is no printable ASCII, or more than 20 levels.

    >>> canonical({"b": [1, None, True], "a": "é\n"})
    b'{"a":"\xc3\xa9\\n","b":[1,null,true]}'

    Rundgren, Jordan and Erdtman: JSON Canonicalization Scheme, RFC 8785, 2020.
    """
    _admit(content, 0)
    text = json.dumps(
        content, ensure_ascii=False, sort_keys=True, separators=(",", ":")
    )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair") from None


def _admit(value: Any, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} levels of lists and objects")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str) or not (key.isascii() and key.isprintable()):
                raise ValueError(f"a key must be printable ASCII, got {key!r:.50}")
            _admit(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _admit(inner, depth + 1)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > LARGEST:
            raise ValueError("an integer is larger than 2^53 - 1")
    elif not (value is None or isinstance(value, str | bool)):
        raise ValueError(f"a {type(value).__name__} cannot be signed: write it as text")


def create_key(path: Path) -> None:
    """Makes a key pair: `path`, readable by its owner alone, and public.pem beside it.

    An existing key stays as it is: receipts were signed with it. If only the public
    half is missing, it is written again.
    """
    _require_package()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        private = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_secret(path, private)
    public = public_pem(load_key(path).public_key())
    beside = path.with_name("public.pem")
    if not beside.exists() or beside.read_bytes() != public:
        atomic.write_bytes(beside, public)


def write_secret(path: Path, content: bytes) -> None:
    """Creates or replaces a file that nobody but its owner can read, at no time."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_key(path: Path) -> "Ed25519PrivateKey":
    """The private key. Raises FileNotFoundError, and ValueError for another file, or
    one that others can read; no message shows what is in it."""
    _require_package()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.is_file():
        raise FileNotFoundError(
            f"no signing key at {path}: restore it from your backup. A new key would "
            "not fit the receipts that were handed out"
        )
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ValueError(f"{path} can be read by others: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(_start(path), password=None)
    except Exception:  # its text might show the key
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path} is no Ed25519 private key in PEM without a password")
    return key


def load_public(path: Path) -> "Ed25519PublicKey":
    """A public key in PEM. Raises FileNotFoundError, ValueError."""
    _require_package()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not path.is_file():
        raise FileNotFoundError(f"no public key at {path}")
    try:
        key = serialization.load_pem_public_key(_start(path))
    except Exception as error:  # what a damaged file raises depends on the damage
        if b"PRIVATE KEY" in _start(path):
            raise ValueError(
                f"{path} is a private key: keep it secret, and give public.pem"
            ) from None
        raise ValueError(f"{path} is no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"{path} is a public key, but not of Ed25519")
    return key


def public_pem(key: "Ed25519PublicKey") -> bytes:
    """SubjectPublicKeyInfo in PEM, as `openssl pkey -pubout` writes it."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def fingerprint(key: "Ed25519PublicKey") -> str:
    """SHA-256, in hex, of the 32 bytes of the public key."""
    return sha256(key.public_bytes_raw()).hexdigest()


def sign(content: Any, key: "Ed25519PrivateKey") -> str:
    """The signature of `canonical(content)`: 64 bytes in base64."""
    return base64.b64encode(key.sign(canonical(content))).decode("ascii")


def check(content: Any, value: str, key: "Ed25519PublicKey") -> None:
    """ValueError unless `value` is the key's signature of the content."""
    from cryptography.exceptions import InvalidSignature

    try:
        signature = base64.b64decode(value, validate=True)
        # Base64 spells 64 bytes in 16 ways: only one of them is ours.
        if base64.b64encode(signature).decode("ascii") != value:
            raise InvalidSignature
        key.verify(signature, canonical(content))
    except (InvalidSignature, binascii.Error):
        raise ValueError(
            "the signature does not fit: the receipt was changed, or signed with "
            "another key"
        ) from None


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MOST_KEY_BYTES)


def _require_package() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ValueError(
            "signatures need the package cryptography: pip install "
            "'sparsekit[unlearning]'"
        ) from None
