"""Virtual API keys: their records, their secrets, and the ids that logs name in place of a key."""

import secrets
from hashlib import sha256
from typing import NamedTuple

import msgspec

from gateway.graph.ids import new_id
from gateway.runtime.name_pattern import matches

_SECRET_PREFIX = "sk-myna-"
_SECRET_BYTES = 30
"""Random bytes of a key: 240 bits, which no client can guess."""
_ID_PREFIX = "key_"
_ID_DIGITS = 24
MAX_PREVIOUS = 8
"""Maximum number of earlier keys that a rotated key accepts at a time."""


class PreviousKey(NamedTuple):
    """The key before a rotation: its digest, and until when it is accepted, in seconds of the Unix clock."""

    digest: str
    until: float


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A virtual API key as it is stored. It has no secret, only the SHA-256 digest of it, in hexadecimal digits.

    `models`: names and patterns of models that the key may use; None: all. `weight`: share of the engines under load.
    `parallel`: maximum number of requests at a time. `rpm`, `tpm`: requests and tokens a minute. `budget_cost`,
    `budget_tokens`: maximum spend of a period; see `periods`. `expires_at`, `created`: seconds of the Unix clock.
    """

    id: str
    digest: str
    created: int
    name: str = ""
    models: tuple[str, ...] | None = None
    weight: float = 1.0
    parallel: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    budget_cost: float | None = None
    budget_tokens: int | None = None
    budget_period: str | None = None
    expires_at: int | None = None
    tags: tuple[str, ...] = ()
    disabled: bool = False
    previous: tuple[PreviousKey, ...] = ()

    @property
    def has_limits(self) -> bool:
        """Whether requests with the key have to be counted."""
        limits = (self.parallel, self.rpm, self.tpm, self.budget_cost, self.budget_tokens)
        return any(limit is not None for limit in limits)

    def is_expired(self, now: float) -> bool:
        """Return whether the key is no longer accepted. `now`: seconds of the Unix clock."""
        return self.expires_at is not None and now >= self.expires_at

    def may_use(self, model: str) -> bool:
        """Return whether the key may use a model, given by the model's own name."""
        return self.models is None or any(matches(pattern, model) for pattern in self.models)

    def rotated(self, digest: str, now: float, grace: float) -> "KeyRecord":
        """Return the record with the digest of another key. The previous key is accepted for `grace` more seconds."""
        valid = [previous for previous in self.previous if previous.until > now]
        if grace > 0:
            valid.append(PreviousKey(self.digest, now + grace))
        return msgspec.structs.replace(self, digest=digest, previous=tuple(valid[-MAX_PREVIOUS:]))


decode_record = msgspec.json.Decoder(KeyRecord).decode
encode_record = msgspec.json.Encoder().encode


def new_key_id() -> str:
    """Return the id of a new key."""
    return _ID_PREFIX + new_id(_ID_DIGITS)


def new_secret() -> str:
    """Return a new key, which no client can guess."""
    return _SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def digest_of(key: str) -> bytes:
    """Return the SHA-256 digest of a key. A header may have any bytes."""
    return sha256(key.encode(errors="surrogateescape")).digest()


def is_key_id(tenant: str) -> bool:
    """Return whether a tenant is the id of a virtual key."""
    return tenant.startswith(_ID_PREFIX)


def key_id_of(tenant: str) -> str:
    """Return the id of a tenant's API key, for logs, metrics and the ledger.

    It is empty if the server has no API keys. A static key has an id that follows from its digest.
    """
    return tenant if not tenant or is_key_id(tenant) else f"static_{tenant[:12]}"
