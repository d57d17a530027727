"""Webhooks by Standard Webhooks: who signed them, when, and what is none."""

import base64
import hmac
from collections.abc import Mapping

import pytest
from pydantic import SecretStr

from shared.errors import Misconfigured, Unauthenticated
from shared.webhooks import verify

# The example of the specification's own libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
NOW = 1614265330
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(NOW),
    "webhook-signature": SIGNATURE,
}


def signed(body: bytes, timestamp: str, key: bytes) -> dict[str, str]:
    digest = hmac.digest(key, f"id.{timestamp}.".encode() + body, "sha256")
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": "id", "webhook-timestamp": timestamp, "webhook-signature": signature}


@pytest.mark.parametrize("seconds", [0, 299, -299])
def test_a_signed_webhook_is_known_by_its_id(seconds: int) -> None:
    assert verify(SecretStr(SECRET), HEADERS, BODY, NOW + seconds) == HEADERS["webhook-id"]
    assert verify(SecretStr(SECRET.removeprefix("whsec_")), HEADERS, BODY, NOW) == HEADERS["webhook-id"]


def test_one_of_several_signatures_is_enough() -> None:
    several = {**HEADERS, "webhook-signature": f"v1,b3RoZXI= v1a,{SIGNATURE[3:]} {SIGNATURE}"}

    assert verify(SecretStr(SECRET), several, BODY, NOW) == HEADERS["webhook-id"]


@pytest.mark.parametrize("seconds", [301, -301, 10**9])
def test_an_old_webhook_is_none_nor_one_from_the_future(seconds: int) -> None:
    with pytest.raises(Unauthenticated, match="five minutes"):
        verify(SecretStr(SECRET), HEADERS, BODY, NOW + seconds)


@pytest.mark.parametrize(
    ("changed", "body"),
    [
        ({}, b'{"test": 2432232315}'),
        ({}, b""),
        ({"webhook-id": "msg_other"}, BODY),
        ({"webhook-timestamp": str(NOW + 1)}, BODY),
        ({"webhook-signature": ""}, BODY),
        ({"webhook-signature": SIGNATURE[3:]}, BODY),
        ({"webhook-signature": f"v2,{SIGNATURE[3:]}"}, BODY),
        ({"webhook-signature": "v1,"}, BODY),
        ({"webhook-signature": "v1,é"}, BODY),
        (signed(BODY, str(NOW), b""), BODY),
        (signed(BODY, str(NOW), b"another"), BODY),
    ],
)
def test_what_was_changed_or_signed_by_others_is_refused(changed: Mapping[str, str], body: bytes) -> None:
    with pytest.raises(Unauthenticated, match="signature"):
        verify(SecretStr(SECRET), {**HEADERS, **changed}, body, NOW)


@pytest.mark.parametrize(
    "changed", [{"webhook-id": ""}, {"webhook-timestamp": ""}, {"webhook-timestamp": "-1"}, {"webhook-timestamp": "٣"}]
)
def test_a_webhook_needs_its_headers(changed: Mapping[str, str]) -> None:
    with pytest.raises(Unauthenticated, match="needs the headers"):
        verify(SecretStr(SECRET), {**HEADERS, **changed}, BODY, NOW)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_a", "whsec_!!!!", "no secret"])
def test_a_secret_that_is_none_trusts_nobody(secret: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        verify(SecretStr(secret), signed(BODY, str(NOW), b""), BODY, NOW)

    assert "REPLICATE_WEBHOOK_SECRET" in refused.value.message
    assert "MfKQ" not in refused.value.message
