"""Secrets from SSM's Parameter Store: read together when the first request needs them, and anew when they are old.

Without boto3, whose client takes a quarter of a second of every cold start: it is one POST, signed as in
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import asyncio
import hashlib
import hmac
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from shared.errors import Misconfigured, Unavailable
from shared.settings import AwsAccount, ParameterNames
from shared.telemetry import logger

AT_ONCE = 10  # names of one GetParameters
TIMEOUT_SECONDS = 3.0
PAUSES = (0.2, 0.5)  # before it is asked again
RETRY_SECONDS = 30  # where they can't be read anew, those that are known stay good


@dataclass(slots=True)
class Parameters:
    """The parameters as they were read last; the names are settings'. One that isn't there is as one that isn't set."""

    names: ParameterNames
    account: AwsAccount
    http: httpx.AsyncClient
    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    fresh_until: float = float("-inf")
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def read(self) -> Mapping[str, str]:
        """The values by setting. Raises `Misconfigured` and `Unavailable` as long as they have never been read."""
        if time.monotonic() >= self.fresh_until:
            async with self.reading:
                if time.monotonic() >= self.fresh_until:  # those who waited find them read
                    await self._read_anew()
        return self.values

    async def _read_anew(self) -> None:
        names = self.names.names
        batches = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
        try:
            found = await asyncio.gather(*(self._get(batch) for batch in batches))
        except (Misconfigured, Unavailable) as error:
            if not self.values:
                raise
            logger.warning("parameters can't be read anew", extra={"reason": error.message})
            self.fresh_until = time.monotonic() + RETRY_SECONDS
            return
        self.values = {name: value for values in found for name, value in values.items()}
        self.fresh_until = time.monotonic() + self.names.seconds

    async def _get(self, names: Sequence[str]) -> dict[str, str]:
        paths = {f"{self.names.path}/{name}": name for name in names}
        body = json.dumps({"Names": list(paths), "WithDecryption": True}).encode()
        for pause in PAUSES:
            try:
                answer = await self._post(body)
                break
            except Unavailable:
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # many instances start together
        else:
            answer = await self._post(body)
        if not answer.is_success:
            kind = answer.headers.get("x-amzn-errortype") or str(_json(answer).get("__type"))
            kind = kind.rpartition("#")[2].partition(":")[0]
            raise Misconfigured(f"The parameters under {self.names.path} can't be read: {kind[:80]}.")
        return {paths[found["Name"]]: found["Value"] for found in _json(answer)["Parameters"]}

    async def _post(self, body: bytes) -> httpx.Response:
        """SSM's answer. Raises `Unavailable` where it is to be asked again."""
        headers = signed(self.account, "AmazonSSM.GetParameters", body, datetime.now(UTC))
        try:
            answer = await self.http.post(self.account.ssm_url, content=body, headers=headers, timeout=TIMEOUT_SECONDS)
        except httpx.HTTPError as error:
            raise Unavailable("The parameters can't be read: SSM doesn't answer.") from error
        if answer.status_code >= 500 or b"Throttling" in answer.content[:1000]:
            raise Unavailable(f"The parameters can't be read: SSM says {answer.status_code}.")
        return answer


def signed(account: AwsAccount, target: str, body: bytes, now: datetime) -> dict[str, str]:
    """The headers of a signed call of SSM, Signature Version 4."""
    day, moment = now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ")
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": urlsplit(account.ssm_url).netloc,
        "x-amz-date": moment,
        **({"x-amz-security-token": account.session_token.get_secret_value()} if account.session_token else {}),
        "x-amz-target": target,
    }
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{day}/{account.region}/ssm/aws4_request"
    words = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{account.secret_access_key.get_secret_value()}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, words.encode(), "sha256").hex()
    credential = f"Credential={account.access_key_id}/{scope}"
    return {**headers, "authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"}


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        told = answer.json()
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {}
