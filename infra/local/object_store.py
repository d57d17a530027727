"""moto's S3 as the storage API keeps objects in it: one S3 bucket for each bucket, made when it is first needed."""

import hashlib
import html
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode
from xml.sax.saxutils import escape

import httpx

from infra.local.forwarding import TIMEOUT

S3_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
# moto finds the service by it and verifies nothing.
AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
PART_BYTES = 6 * 1024 * 1024  # S3 takes no smaller part but the last
PIECE_BYTES = 256 * 1024
MOST_KEYS = 1000
MOST_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """What talks to moto at `url`. Every failure that isn't a missing object raises `httpx.HTTPStatusError`."""

    http: httpx.AsyncClient
    url: str
    made: set[str] = field(default_factory=set)

    async def make(self, bucket: str) -> None:
        """The bucket, where this process hasn't made it yet; making it twice is one and the same."""
        if bucket not in self.made:
            await self._ask("PUT", bucket)
            self.made.add(bucket)

    async def remove(self, bucket: str) -> None:
        """The bucket's end; it must be empty."""
        await self.make(bucket)
        await self._ask("DELETE", bucket)
        self.made.discard(bucket)

    async def put(self, bucket: str, name: str, body: bytes, headers: Mapping[str, str]) -> None:
        await self._ask("PUT", bucket, name, headers=headers, body=body)

    async def head(self, bucket: str, name: str) -> httpx.Headers | None:
        answer = await self._send("HEAD", bucket, name)
        return None if answer.status_code == 404 else answer.raise_for_status().headers

    async def open(self, bucket: str, name: str, headers: Mapping[str, str]) -> httpx.Response:
        """The object's answer up to its body, which the caller closes; a range may be asked for in `headers`."""
        return await self.http.send(self._request("GET", bucket, name, headers=headers), stream=True)

    async def copy(self, source: tuple[str, str], bucket: str, name: str) -> None:
        """Copy an object, its bucket and its name being the source, with all that is known of it."""
        path = f"/{s3_name(source[0])}/{quote(source[1])}"
        await self._ask("PUT", bucket, name, headers={"x-amz-copy-source": path})

    async def delete(self, bucket: str, names: Iterable[str]) -> None:
        """Delete objects; those that aren't there are no failure."""
        names = list(names)
        for start in range(0, len(names), MOST_KEYS):
            keys = "".join(f"<Object><Key>{escape(name)}</Key></Object>" for name in names[start : start + MOST_KEYS])
            body = f"<Delete><Quiet>true</Quiet>{keys}</Delete>".encode()
            await self._ask("POST", bucket, query={"delete": ""}, body=body)

    async def begin(self, bucket: str, name: str, headers: Mapping[str, str]) -> str:
        """Begin an upload in parts, invisible until it is complete; gives its id."""
        answer = await self._ask("POST", bucket, name, query={"uploads": ""}, headers=headers)
        return values(answer.text, "UploadId")[0]

    async def put_part(self, bucket: str, name: str, upload_id: str, number: int, body: bytes) -> str:
        """Send a part, counted from 1; gives its entity tag."""
        query = {"partNumber": str(number), "uploadId": upload_id}
        answer = await self._ask("PUT", bucket, name, query=query, body=body)
        return answer.headers["etag"]

    async def uploaded_bytes(self, bucket: str, name: str, upload_id: str) -> int:
        """How much the parts sent so far hold together."""
        answer = await self._ask("GET", bucket, name, query={"uploadId": upload_id, "max-parts": str(MOST_PARTS)})
        return sum(map(int, values(answer.text, "Size")))

    async def complete(self, bucket: str, name: str, upload_id: str, tags: Iterable[str]) -> None:
        """Make the parts, known by their entity tags in order, the object."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        await self._ask("POST", bucket, name, query={"uploadId": upload_id}, body=body)

    async def abort(self, bucket: str, name: str, upload_id: str) -> None:
        await self._ask("DELETE", bucket, name, query={"uploadId": upload_id})

    async def _ask(self, method: str, bucket: str, name: str = "", **parts: object) -> httpx.Response:
        return (await self._send(method, bucket, name, **parts)).raise_for_status()

    async def _send(self, method: str, bucket: str, name: str = "", **parts: object) -> httpx.Response:
        return await self.http.send(self._request(method, bucket, name, **parts))  # type: ignore[arg-type]

    def _request(
        self,
        method: str,
        bucket: str,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> httpx.Request:
        length = {} if body is None else {"content-length": str(len(body))}
        target = f"/{s3_name(bucket)}" + (f"/{quote(name)}" if name else "") + (f"?{urlencode(query)}" if query else "")
        return self.http.build_request(
            method,
            self.url,
            headers={"authorization": AUTHORIZATION, **length, **(headers or {})},
            content=None if body is None else _pieces(body),
            timeout=TIMEOUT,
            extensions={"target": target.encode()},
        )


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """In one piece it would be copied whole by each layer below."""
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES]


def s3_name(bucket: str) -> str:
    """The S3 bucket behind a bucket, whose name may be longer and hold more than S3 allows."""
    return bucket if S3_NAME.fullmatch(bucket) else hashlib.sha256(bucket.encode()).hexdigest()[:63]


def values(xml: str, tag: str) -> list[str]:
    """The texts of an S3 answer's elements of one name."""
    return [html.unescape(text) for text in re.findall(rf"<{tag}>([^<]*)</{tag}>", xml)]
