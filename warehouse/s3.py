"""Where S3 is and who we are there: from the environment alone, never stored and never printed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from warehouse.errors import LakeError


@dataclass(frozen=True)
class S3Settings:
    """How to reach S3.

    Attributes:
        key_id: access key; None to go without one (public buckets).
        secret: of the key; left out of every printed form.
        token: of a session, where there is one.
        region: of the buckets.
        endpoint: host and port of another S3 than Amazon's, without scheme; None for Amazon's.
        use_ssl: False where the endpoint is plain `http://`.
    """

    key_id: str | None
    secret: str | None = field(repr=False)
    token: str | None = field(repr=False)
    region: str
    endpoint: str | None
    use_ssl: bool


def settings(environment: Mapping[str, str] | None = None) -> S3Settings:
    """Read the settings that every S3 tool reads.

    Args:
        environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION (else
            AWS_DEFAULT_REGION), AWS_ENDPOINT_URL_S3 (else AWS_ENDPOINT_URL); default the process's own.

    Raises:
        LakeError: a key without its secret (or the reverse), or an endpoint that is no http(s) address.
    """
    found = os.environ if environment is None else environment
    key_id, secret = found.get("AWS_ACCESS_KEY_ID") or None, found.get("AWS_SECRET_ACCESS_KEY") or None
    if (key_id is None) != (secret is None):
        message = "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set: set both, or neither"
        raise LakeError(message)
    address = found.get("AWS_ENDPOINT_URL_S3") or found.get("AWS_ENDPOINT_URL") or None
    parts = urlsplit(address or "")
    if address is not None and (
        parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc
    ):
        message = "AWS_ENDPOINT_URL is no http:// or https:// address of a host: mend it"
        raise LakeError(message)
    return S3Settings(
        key_id,
        secret,
        found.get("AWS_SESSION_TOKEN") or None,
        found.get("AWS_REGION") or found.get("AWS_DEFAULT_REGION") or "us-east-1",
        parts.netloc or None,
        parts.scheme != "http",
    )
