"""The S3 protocol of the embedded storage, spoken by boto3."""

import io
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import boto3
import httpx
import psycopg
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from supabase import create_client

from infra.local.stack import Stack

MEGABYTE = 1024 * 1024


def connect(stack: Stack, **changed: str) -> Any:
    environment = stack.environment | changed
    return boto3.client(
        "s3",
        endpoint_url=environment["STORAGE_S3_URL"],
        region_name=environment["S3_PROTOCOL_REGION"],
        aws_access_key_id=environment["S3_PROTOCOL_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["S3_PROTOCOL_ACCESS_KEY_SECRET"],
        config=Config(proxies={}),
    )


@pytest.fixture(scope="module")
def s3(stack: Stack) -> Any:
    return connect(stack)


@pytest.fixture(scope="module")
def bucket(s3: Any) -> Iterator[str]:
    name = f"bucket-{uuid4().hex}"
    s3.create_bucket(Bucket=name)
    yield name


def code(caught: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def test_an_object_comes_back_as_it_went(s3: Any, bucket: str) -> None:
    s3.put_object(
        Bucket=bucket, Key="notes/a b+c.txt", Body=b"hello", ContentType="text/plain", Metadata={"origin": "test"}
    )

    read = s3.get_object(Bucket=bucket, Key="notes/a b+c.txt")
    head = s3.head_object(Bucket=bucket, Key="notes/a b+c.txt")
    part = s3.get_object(Bucket=bucket, Key="notes/a b+c.txt", Range="bytes=1-3")

    assert read["Body"].read() == b"hello"
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (5, "text/plain", {"origin": "test"})
    assert (part["Body"].read(), part["ContentRange"]) == (b"ell", "bytes 1-3/5")
    assert part["ResponseMetadata"]["HTTPStatusCode"] == 206


@pytest.mark.parametrize(
    ("asked", "part"),
    [("bytes=2-", b"23456789"), ("bytes=0-0", b"0"), ("bytes=-3", b"789"), ("bytes=8-99", b"89"), ("bytes=3-1", None)],
)
def test_a_range_is_read_alone(s3: Any, bucket: str, asked: str, part: bytes | None) -> None:
    s3.put_object(Bucket=bucket, Key="digits", Body=b"0123456789")

    answer = s3.get_object(Bucket=bucket, Key="digits", Range=asked)

    assert answer["Body"].read() == (part or b"0123456789")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == (206 if part else 200)


def test_a_range_beyond_the_end_is_refused(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="digits", Body=b"0123456789")

    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=bucket, Key="digits", Range="bytes=10-")

    assert code(caught) == ("InvalidRange", 416)


def test_a_large_file_goes_in_parts(s3: Any, bucket: str) -> None:
    content = bytes(range(256)) * (12 * MEGABYTE // 256)
    parts = TransferConfig(multipart_threshold=5 * MEGABYTE, multipart_chunksize=5 * MEGABYTE)

    s3.upload_fileobj(io.BytesIO(content), bucket, "large.bin", Config=parts)
    read = io.BytesIO()
    s3.download_fileobj(bucket, "large.bin", read, Config=parts)

    assert read.getvalue() == content
    assert s3.head_object(Bucket=bucket, Key="large.bin")["ETag"].endswith('-3"')


def test_parts_are_no_object_before_they_are_complete(s3: Any, bucket: str, stack: Stack) -> None:
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key="parts.bin")["UploadId"]
    named = {"Bucket": bucket, "Key": "parts.bin", "UploadId": upload_id}
    tag = s3.upload_part(**named, PartNumber=1, Body=b"part")["ETag"]
    storage = create_client(stack.url, stack.keys.secret).storage.from_(bucket)

    listed = s3.list_parts(**named)["Parts"]
    uploads = [upload["UploadId"] for upload in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]]
    before = "Contents" in s3.list_objects_v2(Bucket=bucket, Prefix="parts.bin")
    s3.complete_multipart_upload(**named, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})

    assert ([part["Size"] for part in listed], uploads, before) == ([4], [upload_id], False)
    assert storage.download("parts.bin") == b"part"


def test_an_aborted_upload_leaves_nothing(s3: Any, bucket: str) -> None:
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key="aborted.bin")["UploadId"]
    named = {"Bucket": bucket, "Key": "aborted.bin", "UploadId": upload_id}
    s3.upload_part(**named, PartNumber=1, Body=b"part")

    s3.abort_multipart_upload(**named)

    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    with pytest.raises(ClientError) as caught:
        s3.head_object(Bucket=bucket, Key="aborted.bin")
    assert code(caught) == ("404", 404)


def test_objects_are_listed_copied_and_deleted(s3: Any) -> None:
    bucket, other = f"bucket-{uuid4().hex}", f"Other {uuid4().hex} {'x' * 40}"[:63].replace(" ", "_")
    for name in (bucket, other):
        s3.create_bucket(Bucket=name)
    for name in ("a/1", "a/2", "b"):
        s3.put_object(Bucket=bucket, Key=name, Body=name.encode())

    page = s3.list_objects_v2(Bucket=bucket, Delimiter="/")
    s3.copy_object(Bucket=other, Key="copied", CopySource={"Bucket": bucket, "Key": "a/1"})
    s3.delete_object(Bucket=bucket, Key="b")
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a/1"}, {"Key": "a/2"}], "Quiet": True})

    assert [each["Prefix"] for each in page["CommonPrefixes"]] == ["a/"]
    assert [each["Key"] for each in page["Contents"]] == ["b"]
    assert s3.get_object(Bucket=other, Key="copied")["Body"].read() == b"a/1"
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    s3.delete_bucket(Bucket=bucket)  # no row is left either
    names = [each["Name"] for each in s3.list_buckets()["Buckets"]]
    assert (bucket in names, other in names) == (False, True)


def test_a_bucket_that_a_migration_made_takes_objects(s3: Any, stack: Stack) -> None:
    name = f"bucket-{uuid4().hex}"
    with psycopg.connect(stack.database_url) as database:
        database.execute("insert into storage.buckets (id, name, public) values (%s, %s, false)", [name, name])

    s3.put_object(Bucket=name, Key="model.safetensors", Body=b"weights")

    assert s3.get_object(Bucket=name, Key="model.safetensors")["Body"].read() == b"weights"


def test_objects_are_the_storage_apis_too(s3: Any, bucket: str, stack: Stack) -> None:
    storage = create_client(stack.url, stack.keys.secret).storage.from_(bucket)
    s3.put_object(Bucket=bucket, Key="seen/by-s3", Body=b"1", ContentType="text/x-one", Metadata={"origin": "s3"})
    storage.upload("seen/by-storage", b"22", {"content-type": "text/x-two"})

    there = {each["name"]: each["metadata"]["mimetype"] for each in storage.list("seen")}
    info = storage.info("seen/by-s3")
    here = s3.head_object(Bucket=bucket, Key="seen/by-storage")
    s3.delete_object(Bucket=bucket, Key="seen/by-storage")

    assert there == {"by-s3": "text/x-one", "by-storage": "text/x-two"}
    assert (info["size"], info["metadata"]) == (1, {"origin": "s3"})
    assert (here["ContentLength"], here["ContentType"]) == (2, "text/x-two")
    assert [each["name"] for each in storage.list("seen")] == ["by-s3"]


def test_a_presigned_address_opens_what_it_names(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="presigned", Body=b"hello")
    s3.put_object(Bucket=bucket, Key="presigneD", Body=b"other")

    address = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "presigned"}, ExpiresIn=60)
    tampered = httpx.get(address.replace("presigned?", "presigneD?"))
    lengthened = httpx.get(address.replace("Expires=60", "Expires=61"))
    expired = httpx.get(s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "presigned"}, ExpiresIn=0))

    assert httpx.get(address).text == "hello"
    assert (tampered.status_code, lengthened.status_code) == (403, 403)
    assert "SignatureDoesNotMatch" in tampered.text
    assert expired.status_code == 403
    assert "Request has expired" in expired.text


def test_a_presigned_address_takes_an_upload(s3: Any, bucket: str) -> None:
    address = s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "folder/sent"}, ExpiresIn=60)

    assert httpx.put(address, content=b"hello").is_success
    assert s3.get_object(Bucket=bucket, Key="folder/sent")["Body"].read() == b"hello"


def test_a_name_may_end_in_a_slash(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="empty folder/", Body=b"")

    assert [each["Key"] for each in s3.list_objects_v2(Bucket=bucket, Prefix="empty")["Contents"]] == ["empty folder/"]


def test_a_wrong_secret_is_refused(stack: Stack, bucket: str) -> None:
    with pytest.raises(ClientError) as caught:
        connect(stack, S3_PROTOCOL_ACCESS_KEY_SECRET="0" * 64).put_object(Bucket=bucket, Key="key", Body=b"")

    assert code(caught) == ("SignatureDoesNotMatch", 403)


def test_an_unknown_access_key_is_refused(stack: Stack, bucket: str) -> None:
    with pytest.raises(ClientError) as caught:
        connect(stack, S3_PROTOCOL_ACCESS_KEY_ID="0" * 32).list_objects_v2(Bucket=bucket)

    assert code(caught) == ("InvalidAccessKeyId", 403)


def test_a_request_without_a_signature_is_refused(stack: Stack, bucket: str) -> None:
    address = f"{stack.environment['STORAGE_S3_URL']}/{bucket}/key"

    answers = [httpx.get(address), httpx.put(address, headers={"authorization": f"Bearer {stack.keys.secret}"})]

    assert [answer.status_code for answer in answers] == [403, 403]
    assert all("AccessDenied" in answer.text for answer in answers)


def test_a_request_signed_long_ago_is_refused(stack: Stack, bucket: str) -> None:
    address = f"{stack.environment['STORAGE_S3_URL']}/{bucket}"
    request = signed(stack, "GET", address)
    request["X-Amz-Date"] = "20200101T000000Z"

    answer = httpx.get(address, headers=request)

    assert answer.status_code == 403
    assert "RequestTimeTooSkewed" in answer.text


def test_a_body_in_chunks_with_a_trailing_checksum_is_stored_without_them(stack: Stack, s3: Any, bucket: str) -> None:
    address = f"{stack.environment['STORAGE_S3_URL']}/{bucket}/chunked"
    body = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"
    headers = signed(
        stack,
        "PUT",
        address,
        **{
            "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "x-amz-decoded-content-length": "5",
            "x-amz-trailer": "x-amz-checksum-crc32",
            "content-encoding": "aws-chunked",
        },
    )

    answer = httpx.put(address, content=body, headers=headers)

    assert answer.is_success, answer.text
    stored = s3.get_object(Bucket=bucket, Key="chunked")
    assert stored["Body"].read() == b"hello"
    assert not stored.get("ContentEncoding")


def test_a_buckets_limits_hold(stack: Stack, s3: Any) -> None:
    name = f"bucket-{uuid4().hex}"
    options: Any = {"file_size_limit": 4, "allowed_mime_types": ["text/*"]}
    create_client(stack.url, stack.keys.secret).storage.create_bucket(name, options=options)

    with pytest.raises(ClientError) as large:
        s3.put_object(Bucket=name, Key="large", Body=b"12345", ContentType="text/plain")
    with pytest.raises(ClientError) as image:
        s3.put_object(Bucket=name, Key="image", Body=b"1234", ContentType="image/png")
    upload_id = s3.create_multipart_upload(Bucket=name, Key="parts", ContentType="text/plain")["UploadId"]
    named = {"Bucket": name, "Key": "parts", "UploadId": upload_id}
    tags = [s3.upload_part(**named, PartNumber=number, Body=b"123")["ETag"] for number in (1, 2)]
    parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
    with pytest.raises(ClientError) as whole:
        s3.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})

    assert code(large) == code(whole) == ("EntityTooLarge", 413)
    assert code(image) == ("InvalidMimeType", 415)
    assert "Contents" not in s3.list_objects_v2(Bucket=name)


@pytest.mark.parametrize("key", ["a/../b", "naïve", "tab\t"])
def test_a_name_the_storage_api_refuses_is_refused(s3: Any, bucket: str, key: str) -> None:
    with pytest.raises(ClientError) as caught:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")

    assert code(caught) == ("InvalidKey", 400)


def test_missing_buckets_and_objects_are_not_found(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as no_bucket:
        s3.list_objects_v2(Bucket=f"bucket-{uuid4().hex}")
    with pytest.raises(ClientError) as no_object:
        s3.get_object(Bucket=bucket, Key="nowhere")

    assert code(no_bucket) == ("NoSuchBucket", 404)
    assert code(no_object) == ("NoSuchKey", 404)


def test_a_bucket_is_made_once_and_deleted_empty(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="kept", Body=b"")

    with pytest.raises(ClientError) as again:
        s3.create_bucket(Bucket=bucket)
    with pytest.raises(ClientError) as full:
        s3.delete_bucket(Bucket=bucket)

    assert code(again) == ("BucketAlreadyExists", 409)
    assert code(full) == ("BucketNotEmpty", 409)


def signed(stack: Stack, method: str, address: str, **headers: str) -> dict[str, str]:
    """The headers of a request signed as botocore signs it, with headers of one's own."""
    environment = stack.environment
    keys = Credentials(environment["S3_PROTOCOL_ACCESS_KEY_ID"], environment["S3_PROTOCOL_ACCESS_KEY_SECRET"])
    digest = headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    request = AWSRequest(method, address, headers=headers)
    auth = S3SigV4Auth(keys, "s3", environment["S3_PROTOCOL_REGION"])
    auth.payload = lambda request: digest  # type: ignore[method-assign]
    auth.add_auth(request)
    return dict(request.headers)
