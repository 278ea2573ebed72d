"""What a disk or S3 says when a file cannot be read, as one line that a person can act on."""

import errno
import re

from warehouse import s3
from warehouse.errors import LakeUnavailableError, PlaceError, WellhouseError

_CODE = re.compile(r"AWS Error ([A-Z_]+(?: \(HTTP status \d+\))?)")
_REFUSED = (
    "ACCESS_DENIED",
    "SIGNATURE",
    "ACCESS_KEY",
    "TOKEN",
    "EXPIRED",
    "HTTP status 401",
    "HTTP status 403",
)
_DOWN = (
    "NETWORK_CONNECTION",
    "UNAVAILABLE",
    "SLOW_DOWN",
    "THROTTLING",
    "INTERNAL",
    "TIMEOUT",
    "HTTP status 5",
)


def failure(location: str, error: OSError) -> WellhouseError:
    """Say in one line why a location cannot be read; what S3 wrote is left out, as it may quote keys.

    Args:
        location: a path of this machine, or `s3://bucket/key`.
        error: from the disk, or from pyarrow.

    Returns:
        LakeUnavailableError where S3 cannot be reached, else PlaceError.
    """
    text = str(error)
    if not location.startswith("s3://") or isinstance(error, FileNotFoundError):
        what = (
            "there is no such file" if error.errno == errno.ENOENT else error.strerror or type(error).__name__
        )
        return PlaceError(f"{location}: cannot be read ({what}): correct the path or its permissions")
    settings = s3.settings()
    found = _CODE.search(text)
    code = found.group(1) if found else type(error).__name__
    if "NO_SUCH_BUCKET" in code:
        bucket = location.split("/")[2]
        return PlaceError(f"{location}: there is no bucket {bucket!r}: correct it, or AWS_ENDPOINT_URL")
    if any(part in code for part in _DOWN):
        reason = re.search(r"curlCode: \d+, ([^;]*)", text)
        return LakeUnavailableError(
            f"{location}: S3 at {settings.endpoint or 'Amazon'} cannot be reached ({reason[1] if reason else code}): "
            "try again, or correct AWS_ENDPOINT_URL"
        )
    if any(part in code for part in _REFUSED):
        with_keys = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may read"
        hint = with_keys if settings.key_id else "without AWS_ACCESS_KEY_ID only public buckets can be read"
        return PlaceError(f"{location}: S3 refuses access ({code}): {hint}")
    hint = "set AWS_REGION to the bucket's" if "301" in code else "is AWS_ENDPOINT_URL an S3 server?"
    return PlaceError(f"{location}: S3 does not answer as it should ({code}): {hint}")
