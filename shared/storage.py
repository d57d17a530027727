"""Supabase Storage: signed addresses, and its S3 protocol for whatever is large."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from shared.errors import Misconfigured, NotFound, StorageUnavailable
from shared.settings import Settings
from shared.transfers import Destination, client
from shared.wire import Wire

Answer = TypeVar("Answer")
URL_SECONDS = 300
DATASETS = "datasets"  # the folder of exports, and so no model's name


class SignedUpload(Wire):
    """Where one file goes: whole by PUT to `url`, or resumable by TUS 1.0 in chunks of 6 MiB.

    For TUS, `token` is the header `x-signature`, and `Upload-Metadata` names `bucket` and `object`.
    """

    path: str
    url: str
    resumable_url: str
    token: str
    bucket: str
    object: str


class SignedDownload(Wire):
    """Where one file is to be had."""

    path: str
    url: str


class SignedDownloads(Wire):
    """Where files are to be had, for so many seconds."""

    files: list[SignedDownload]
    expires_in: int = URL_SECONDS


@dataclass(frozen=True, slots=True)
class Storage:
    """The bucket of the models' files, with the secret key."""

    settings: Settings
    http: httpx.AsyncClient

    async def sign_upload(self, folder: str, path: str) -> SignedUpload:
        """An address that takes one file, once. Raises `StorageUnavailable`."""
        key = f"{folder}/{path}"
        signed = await _done(self._bucket().create_signed_upload_url(key))
        return SignedUpload(
            path=path,
            url=signed["signed_url"],
            resumable_url=f"{self.settings.supabase_url}/storage/v1/upload/resumable/sign",
            token=signed["token"],
            bucket=self.settings.models_bucket,
            object=key,
        )

    async def sign_downloads(self, folder: str, paths: list[str]) -> SignedDownloads:
        """Addresses that give the files for a while. Raises `StorageUnavailable`."""
        keys = [f"{folder}/{path}" for path in paths]
        signed = await _done(self._bucket().create_signed_urls(keys, URL_SECONDS)) if keys else []
        pairs = zip(paths, signed, strict=True)
        return SignedDownloads(files=[SignedDownload(path=path, url=each["signedURL"]) for path, each in pairs])

    async def read(self, key: str) -> bytes:
        """A small file. Raises `NotFound` and `StorageUnavailable`."""
        return await _done(self._bucket().download(key))

    async def remove(self, keys: list[str]) -> None:
        """Files that are gone already are no error."""
        for start in range(0, len(keys), 1000):
            await _done(self._bucket().remove(keys[start : start + 1000]))

    def destination(self, folder: str) -> Destination:
        """A folder of the bucket, for transfers. Raises `Misconfigured` without keys for the S3 protocol."""
        settings = self.settings
        key_id, secret = settings.s3_protocol_access_key_id, settings.s3_protocol_access_key_secret
        if not key_id or not secret:
            raise Misconfigured("Missing settings: S3_PROTOCOL_ACCESS_KEY_ID and S3_PROTOCOL_ACCESS_KEY_SECRET.")
        s3 = client(settings.storage_s3_url, settings.s3_protocol_region, (key_id, secret.get_secret_value()))
        return Destination(s3, settings.models_bucket, folder)

    def _bucket(self) -> Any:
        from storage3 import AsyncStorageClient  # not of a request that needs no file

        key = self.settings.supabase_secret_key.get_secret_value()
        # A legacy key is a token and goes as one; a new one is none, and counts as `apikey` alone.
        headers = {"apikey": key} | ({"Authorization": f"Bearer {key}"} if key.startswith("eyJ") else {})
        url = f"{self.settings.supabase_url}/storage/v1/"
        return AsyncStorageClient(url, headers, http_client=self.http).from_(self.settings.models_bucket)


async def _done(call: Awaitable[Answer]) -> Answer:
    from storage3.exceptions import StorageApiError
    from storage3.utils import StorageException

    try:
        return await call
    except StorageApiError as error:
        if "404" in (str(error.status), str(error.code)) or error.code == "not_found":
            raise NotFound("There is no such file in storage.") from error
        raise StorageUnavailable(f"Storage refused ({error.code}): try again.") from error
    except (StorageException, httpx.HTTPError, ValueError, KeyError) as error:
        raise StorageUnavailable("Storage can't be reached: try again.") from error
