"""Webhooks of providers: whether they come from whom they say."""

import base64
import binascii
import hmac
import re
import time
from collections.abc import Mapping

from pydantic import SecretStr

from shared.errors import Misconfigured, Unauthenticated

TOLERANCE_SECONDS = 300
SECRET = re.compile(r"(?:whsec_)?([A-Za-z0-9+/]+={0,2})")


def verify(secret: SecretStr, headers: Mapping[str, str], body: bytes, now: float | None = None) -> str:
    """The webhook's id, once it is known to be signed with the secret, and not more than five minutes ago.

    By Standard Webhooks 1.0: HMAC-SHA256 over `id.timestamp.body`; of several signatures, as while a secret is
    replaced, one is enough. Raises `Unauthenticated`, and `Misconfigured` for a secret that is none.
    """
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not webhook_id or not re.fullmatch(r"\d{1,12}", timestamp, re.ASCII):
        raise Unauthenticated("A webhook needs the headers webhook-id, webhook-timestamp and webhook-signature.")
    if abs((time.time() if now is None else now) - int(timestamp)) > TOLERANCE_SECONDS:
        raise Unauthenticated("The webhook is more than five minutes old, or from the future.")
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.digest(_key(secret), signed, "sha256"))
    versions = [part.partition(",") for part in headers.get("webhook-signature", "").split(" ")]
    given = [signature.encode() for version, _, signature in versions if version == "v1"]
    if not any([hmac.compare_digest(digest, signature) for signature in given]):
        raise Unauthenticated("The webhook's signature is not by this project's secret.")
    return webhook_id


def _key(secret: SecretStr) -> bytes:
    match = SECRET.fullmatch(secret.get_secret_value())
    try:
        return base64.b64decode(match[1] if match else "=", validate=True)
    except binascii.Error as error:
        raise Misconfigured("Malformed settings: REPLICATE_WEBHOOK_SECRET.") from error
