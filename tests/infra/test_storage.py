"""The storage API of the embedded stack, as supabase-py and supabase-js use it."""

import asyncio
import io
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import jwt
import psycopg
import pytest
from storage3._sync.file_api import SyncBucketProxy
from storage3.exceptions import StorageApiError
from supabase import Client, acreate_client, create_client

from infra.local import postgres
from infra.local.stack import Stack
from tests.infra import run_node
from tests.users import User

MEGABYTE = 1024 * 1024
TEXT: Any = {"content-type": "text/plain"}
NOWHERE = "Either the object does not exist or you do not have access to it"


@pytest.fixture(scope="module")
def service(stack: Stack) -> Client:
    return create_client(stack.url, stack.keys.secret)


@pytest.fixture(scope="module")
def visitor(stack: Stack) -> Client:
    return create_client(stack.url, stack.keys.publishable)


@pytest.fixture(scope="module")
def user(stack: Stack) -> Client:
    return User.sign_up(stack).client(stack)


@pytest.fixture
def bucket(service: Client) -> str:
    return make_bucket(service)


@pytest.fixture
def files(service: Client, bucket: str) -> SyncBucketProxy:
    return service.storage.from_(bucket)


def make_bucket(service: Client, **options: Any) -> str:
    name = f"bucket-{uuid4().hex}"
    service.storage.create_bucket(name, options=options)  # type: ignore[arg-type]
    return name


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[str, str, str]:
    """The status, the code and the message that a call is refused with."""
    with pytest.raises(StorageApiError) as caught:
        call(*arguments, **options)
    return str(caught.value.status), caught.value.code, caught.value.message


def test_a_bucket_lives_from_creation_to_deletion(service: Client) -> None:
    name = make_bucket(service, public=True, file_size_limit=1000, allowed_mime_types=["image/*"])
    made = service.storage.get_bucket(name)

    service.storage.update_bucket(name, {"file_size_limit": 2000})
    changed = service.storage.get_bucket(name)
    listed = [bucket.id for bucket in service.storage.list_buckets()]
    service.storage.delete_bucket(name)

    assert (made.id, made.public, made.file_size_limit, made.allowed_mime_types) == (name, True, 1000, ["image/*"])
    assert (changed.public, changed.file_size_limit, changed.allowed_mime_types) == (True, 2000, ["image/*"])
    assert name in listed
    assert refusal(service.storage.get_bucket, name) == ("404", "Bucket not found", "Bucket not found")


def test_a_bucket_is_refused_twice_and_under_a_bad_name(service: Client, bucket: str) -> None:
    assert refusal(service.storage.create_bucket, bucket) == ("409", "Duplicate", "The resource already exists")
    assert refusal(service.storage.create_bucket, "a/b") == ("400", "Invalid Input", "Bucket name invalid")


def test_a_bucket_is_emptied_before_it_is_deleted(service: Client, bucket: str, files: SyncBucketProxy) -> None:
    files.upload("a/b.txt", b"b")
    full = refusal(service.storage.delete_bucket, bucket)

    service.storage.empty_bucket(bucket)

    assert full == ("409", "ResourceNotEmpty", "The bucket you tried to delete is not empty")
    assert files.list() == []
    service.storage.delete_bucket(bucket)


def test_the_bucket_for_models_is_there_and_private(service: Client) -> None:
    models = service.storage.get_bucket("ai-models")

    assert models.public is False


def test_buckets_outlive_the_stack_and_objects_do_not(tmp_path: Path) -> None:
    try:
        with (
            Stack(tmp_path, only=["postgres"], preferred_ports={}) as first,
            psycopg.connect(first.database_url) as database,
        ):
            database.execute("insert into storage.buckets (id, name) values ('kept', 'kept')")
            database.execute("insert into storage.objects (bucket_id, name) values ('kept', 'gone')")
        with (
            Stack(tmp_path, only=["postgres"], preferred_ports={}) as second,
            psycopg.connect(second.database_url) as database,
        ):
            there = database.execute(
                "select b.id, o.name from storage.buckets b left join storage.objects o on o.bucket_id = b.id"
            ).fetchall()
    finally:
        postgres.remove(tmp_path)

    assert there == [("kept", None)]


def test_an_object_comes_back_with_what_it_was_sent_with(files: SyncBucketProxy) -> None:
    metadata = {"origin": "naïve", "tags": [1, 2]}
    options: Any = {"content-type": "text/x-notes", "cache-control": "60", "metadata": metadata}

    sent = files.upload("notes/a b.txt", b"hello", options)
    info = files.info("notes/a b.txt")

    assert files.download("notes/a b.txt") == b"hello"
    assert sent.path == "notes/a b.txt"
    assert (info["size"], info["content_type"], info["cache_control"]) == (5, "text/x-notes", "max-age=60")
    assert info["metadata"] == metadata


def test_a_large_file_goes_and_comes_whole(files: SyncBucketProxy) -> None:
    content = bytes(range(256)) * (13 * MEGABYTE // 256) + b"end"

    files.upload("large.bin", io.BufferedReader(io.BytesIO(content)))

    assert files.download("large.bin") == content


def test_an_empty_file_is_a_file(files: SyncBucketProxy) -> None:
    files.upload("a/.emptyFolderPlaceholder", b"")

    assert files.download("a/.emptyFolderPlaceholder") == b""


def test_an_object_is_replaced_only_on_demand(files: SyncBucketProxy) -> None:
    files.upload("a.txt", b"first")

    duplicate = refusal(files.upload, "a.txt", b"second")
    kept = files.download("a.txt")
    files.upload("a.txt", b"upserted", {"upsert": "true"})
    upserted = files.download("a.txt")
    files.update("a.txt", b"updated")

    assert duplicate == ("409", "Duplicate", "The resource already exists")
    assert (kept, upserted, files.download("a.txt")) == (b"first", b"upserted", b"updated")


def test_a_range_and_a_head_are_answered(stack: Stack, bucket: str, files: SyncBucketProxy) -> None:
    files.upload("a.txt", b"0123456789", TEXT)
    address, key = f"{stack.url}/storage/v1/object/{bucket}/a.txt", {"apikey": stack.keys.secret}

    part = httpx.get(address, headers={**key, "range": "bytes=2-4"})
    outside = httpx.get(address, headers={**key, "range": "bytes=10-"})
    head = httpx.head(address, headers=key)
    unchanged = httpx.get(address, headers={**key, "if-none-match": head.headers["etag"]})

    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "234", "bytes 2-4/10")
    assert outside.json()["statusCode"] == "416"
    assert head.headers["content-length"] == "10"
    assert head.headers["content-type"] == "text/plain"
    assert head.headers["cache-control"] == "max-age=3600"
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_folders_are_listed_before_objects(files: SyncBucketProxy) -> None:
    for name in ("b.txt", "a.txt", "z/1", "z/2", "y/deep/3"):
        files.upload(name, name.encode(), TEXT)

    top = files.list()

    assert [(each["name"], each["id"] is None) for each in top] == [
        ("y", True), ("z", True), ("a.txt", False), ("b.txt", False),
    ]  # fmt: skip
    assert top[0]["metadata"] is None
    assert (top[2]["metadata"]["size"], top[2]["metadata"]["mimetype"]) == (5, "text/plain")
    assert [each["name"] for each in files.list("z")] == ["1", "2"]
    assert [each["name"] for each in files.list("y")] == ["deep"]


def test_a_list_is_searched_sorted_and_paged(files: SyncBucketProxy) -> None:
    for name in ("f/one", "f/two", "f/Three", "f/four"):
        files.upload(name, b"")
    newest: Any = {"sortBy": {"column": "created_at", "order": "desc"}}

    assert [each["name"] for each in files.list("f", {"search": "t"})] == ["Three", "two"]
    assert [each["name"] for each in files.list("f", newest)] == ["four", "Three", "two", "one"]
    assert [each["name"] for each in files.list("f", {"limit": 2, "offset": 1})] == ["four", "one"]


def test_the_second_list_goes_on_where_it_stopped(files: SyncBucketProxy) -> None:
    for name in ("a/1", "a/2", "b", "c"):
        files.upload(name, b"")

    first = files.list_v2({"limit": 2, "with_delimiter": True})
    second = files.list_v2({"limit": 2, "with_delimiter": True, "cursor": str(first.nextCursor)})
    flat = files.list_v2({"prefix": "a/"})

    assert ([each.name for each in first.folders], [each.name for each in first.objects]) == (["a/"], ["b"])
    assert (first.hasNext, second.hasNext, [each.name for each in second.objects]) == (True, False, ["c"])
    assert [each.name for each in flat.objects] == ["a/1", "a/2"]


def test_an_object_is_moved_and_copied(files: SyncBucketProxy) -> None:
    files.upload("a.txt", b"a", {"metadata": {"origin": "test"}})
    before = files.info("a.txt")["id"]

    files.move("a.txt", "b/moved.txt")
    files.copy("b/moved.txt", "b/copied.txt")

    assert not files.exists("a.txt")
    assert files.info("b/moved.txt")["id"] == before
    assert files.info("b/copied.txt")["metadata"] == {"origin": "test"}
    assert (files.download("b/moved.txt"), files.download("b/copied.txt")) == (b"a", b"a")
    assert refusal(files.move, "b/moved.txt", "b/copied.txt")[:2] == ("409", "Duplicate")
    assert refusal(files.copy, "b/moved.txt", "b/copied.txt")[:2] == ("409", "Duplicate")
    assert refusal(files.move, "nowhere", "b/other.txt")[:2] == ("404", "not_found")


def test_an_object_goes_to_another_bucket(stack: Stack, service: Client, bucket: str, files: SyncBucketProxy) -> None:
    other = make_bucket(service)
    files.upload("a.txt", b"a")
    body = {"bucketId": bucket, "sourceKey": "a.txt", "destinationBucket": other, "destinationKey": "b.txt"}
    there, key = service.storage.from_(other), {"apikey": stack.keys.secret}

    copied = httpx.post(f"{stack.url}/storage/v1/object/copy", json=body, headers=key)
    moved = httpx.post(f"{stack.url}/storage/v1/object/move", json=body | {"destinationKey": "c.txt"}, headers=key)
    nowhere = httpx.post(
        f"{stack.url}/storage/v1/object/copy",
        json=body | {"destinationBucket": "nowhere", "bucketId": other, "sourceKey": "b.txt"},
        headers=key,
    )

    assert (copied.json()["Key"], moved.json()["message"]) == (f"{other}/b.txt", "Successfully moved")
    assert (there.download("b.txt"), there.download("c.txt"), files.list()) == (b"a", b"a", [])
    assert nowhere.json()["statusCode"] == "404"


def test_objects_are_removed_by_name(files: SyncBucketProxy) -> None:
    for name in ("a", "b", "c"):
        files.upload(name, b"")

    removed = files.remove(["a", "b", "nowhere"])

    assert sorted(each["name"] for each in removed) == ["a", "b"]
    assert [each["name"] for each in files.list()] == ["c"]
    assert refusal(files.download, "a") == ("404", "not_found", "Object not found")


def test_a_signed_address_opens_one_object(files: SyncBucketProxy) -> None:
    files.upload("a b.txt", b"a", TEXT)
    files.upload("other.txt", b"other")

    address = files.create_signed_url("a b.txt", 60, {"download": "named.txt"})["signedURL"]
    many = files.create_signed_urls(["a b.txt", "nowhere"], 60)

    assert address
    opened = httpx.get(address)
    assert (opened.text, "named.txt" in opened.headers["content-disposition"]) == ("a", True)
    assert httpx.get(str(many[0]["signedURL"])).text == "a"
    assert (many[1]["error"], many[1]["signedURL"]) == (NOWHERE, None)
    assert httpx.get(address.replace("a%20b.txt", "other.txt")).json()["error"] == "InvalidSignature"
    assert refusal(files.create_signed_url, "nowhere", 60)[:2] == ("404", "not_found")


def test_a_signed_address_is_refused_when_it_is_old_or_forged(
    stack: Stack, bucket: str, files: SyncBucketProxy
) -> None:
    files.upload("a.txt", b"a")
    address = f"{stack.url}/storage/v1/object/sign/{bucket}/a.txt"
    claims = {"url": f"{bucket}/a.txt", "scope": "download", "exp": 1}
    old = jwt.encode(claims, stack.keys.jwt_secret, "HS256")
    forged = jwt.encode(claims | {"exp": 9999999999}, "x" * 32, "HS256")
    upload = files.create_signed_upload_url("b.txt")["token"]
    signed = str(files.create_signed_url("a.txt", 60)["signedURL"])

    refusals = [httpx.get(address, params={"token": token}).json() for token in (old, forged, upload)]
    as_a_key = httpx.get(
        address.replace("/sign/", "/"), headers={"apikey": parse_qs(urlsplit(signed).query)["token"][0]}
    )

    assert [each["error"] for each in refusals] == ["InvalidJWT", "InvalidJWT", "InvalidSignature"]
    assert httpx.get(address).json()["statusCode"] == "400"
    assert as_a_key.json()["error"] == "Bucket not found"


def test_a_signed_upload_takes_one_object(visitor: Client, bucket: str, files: SyncBucketProxy) -> None:
    token = files.create_signed_upload_url("a.txt")["token"]
    again = files.create_signed_upload_url("b.txt", options=None)["token"]
    theirs = visitor.storage.from_(bucket)

    theirs.upload_to_signed_url("a.txt", token, b"signed", {"content-type": "text/plain"})

    assert files.download("a.txt") == b"signed"
    assert refusal(theirs.upload_to_signed_url, "a.txt", token, b"twice")[:2] == ("409", "Duplicate")
    assert refusal(theirs.upload_to_signed_url, "c.txt", again, b"other")[:2] == ("400", "InvalidSignature")
    assert refusal(files.create_signed_upload_url, "a.txt")[:2] == ("409", "Duplicate")


def test_a_public_bucket_is_open_to_readers(stack: Stack, service: Client, visitor: Client) -> None:
    name = make_bucket(service, public=True)
    service.storage.from_(name).upload("a/page.html", b"<p>", {"content-type": "text/html"})
    files = visitor.storage.from_(name)

    page = httpx.get(files.get_public_url("a/page.html", {"download": "page.html"}))
    missing = httpx.get(files.get_public_url("nowhere"))

    assert (page.text, page.headers["content-type"].partition(";")[0]) == ("<p>", "text/plain")
    assert "page.html" in page.headers["content-disposition"]
    assert httpx.get(f"{stack.url}/storage/v1/object/info/public/{name}/a/page.html").json()["size"] == 3
    assert missing.json()["statusCode"] == "404"
    assert refusal(files.upload, "b.txt", b"")[:2] == ("403", "Unauthorized")


def test_a_private_bucket_has_no_public_addresses(stack: Stack, bucket: str, files: SyncBucketProxy) -> None:
    files.upload("a.txt", b"a")

    answers = [
        httpx.get(f"{stack.url}/storage/v1/object/public/{bucket}/a.txt"),
        httpx.get(f"{stack.url}/storage/v1/object/{bucket}/a.txt"),
    ]

    assert [answer.json()["error"] for answer in answers] == ["Bucket not found", "Bucket not found"]


@pytest.mark.parametrize("who", ["visitor", "user"])
def test_others_than_the_service_are_refused(
    who: str, request: pytest.FixtureRequest, bucket: str, files: SyncBucketProxy
) -> None:
    client: Client = request.getfixturevalue(who)
    theirs = client.storage.from_(bucket)
    files.upload("a.txt", b"a")
    not_allowed = ("403", "Unauthorized", "new row violates row-level security policy")
    no_object = ("404", "not_found", "Object not found")

    assert refusal(client.storage.create_bucket, f"bucket-{uuid4().hex}") == not_allowed
    assert refusal(client.storage.update_bucket, bucket, {"public": True})[:1] == ("404",)
    assert refusal(client.storage.delete_bucket, bucket)[:1] == ("404",)
    assert refusal(client.storage.empty_bucket, bucket)[:1] == ("404",)
    assert refusal(theirs.upload, "b.txt", b"") == not_allowed
    assert refusal(theirs.upload, "a.txt", b"", {"upsert": "true"}) == not_allowed
    assert refusal(theirs.create_signed_upload_url, "b.txt") == not_allowed
    assert refusal(theirs.download, "a.txt") == no_object
    assert refusal(theirs.info, "a.txt") == no_object
    assert refusal(theirs.move, "a.txt", "b.txt") == no_object
    assert refusal(theirs.copy, "a.txt", "b.txt") == no_object
    assert refusal(theirs.create_signed_url, "a.txt", 60) == no_object
    assert (theirs.list(), theirs.remove(["a.txt"]), client.storage.list_buckets()) == ([], [], [])
    assert files.download("a.txt") == b"a"


def test_a_policy_opens_a_folder_to_its_user(stack: Stack, user: Client, bucket: str, files: SyncBucketProxy) -> None:
    theirs = user.storage.from_(bucket)
    with psycopg.connect(stack.database_url) as database:
        database.execute(
            f"""
            create policy "{bucket}" on storage.objects for all to authenticated
            using (bucket_id = '{bucket}' and (storage.foldername(name))[1] = 'mine')
            """.encode()
        )

    theirs.upload("mine/a.txt", b"mine")
    files.upload("other/a.txt", b"other")

    assert theirs.download("mine/a.txt") == b"mine"
    assert [each["name"] for each in theirs.list()] == ["mine"]
    assert refusal(theirs.upload, "other/b.txt", b"")[:2] == ("403", "Unauthorized")
    assert refusal(theirs.move, "mine/a.txt", "other/c.txt")[:2] == ("403", "Unauthorized")


@pytest.mark.parametrize("key", [None, "sb_publishable_other"])
def test_a_call_without_a_valid_key_is_refused(stack: Stack, bucket: str, key: str | None) -> None:
    headers = {"apikey": key} if key else {}

    answer = httpx.get(f"{stack.url}/storage/v1/bucket", headers=headers)

    assert answer.json()["statusCode"] == ("403" if key else "400")
    assert answer.status_code == 400


def test_a_buckets_limits_hold(service: Client) -> None:
    files = service.storage.from_(make_bucket(service, file_size_limit=4, allowed_mime_types=["text/*", "image/png"]))
    too_large = ("413", "Payload too large", "The object exceeded the maximum allowed size")

    files.upload("a", b"1234", TEXT)

    assert refusal(files.upload, "b", b"12345", TEXT) == too_large
    assert refusal(files.upload, "b", b"x" * 7 * MEGABYTE, TEXT) == too_large
    assert refusal(files.update, "a", b"12345", TEXT) == too_large
    assert refusal(files.upload, "b", b"", {"content-type": "image/gif"}) == (
        "415", "invalid_mime_type", "mime type image/gif is not supported",
    )  # fmt: skip
    assert [each["name"] for each in files.list()] == ["a"]
    assert files.download("a") == b"1234"


@pytest.mark.parametrize("name", ["a/%2e%2e/b", "na%C3%AFve", "a%5Cb", "a%00b"])
def test_a_name_that_no_object_can_have_is_refused(stack: Stack, bucket: str, name: str) -> None:
    address = f"/storage/v1/object/{bucket}/{name}"

    with httpx.Client(headers={"apikey": stack.keys.secret}) as client:
        answer = client.post(stack.url, content=b"", extensions={"target": address.encode()})

    assert answer.status_code == 400
    assert answer.json()["error"] == "InvalidKey"


def test_nothing_goes_where_there_is_no_bucket(service: Client) -> None:
    files = service.storage.from_("nowhere")

    assert refusal(files.upload, "a", b"")[:2] == ("404", "Bucket not found")
    assert refusal(files.download, "a")[:2] == ("404", "Bucket not found")


def test_a_form_that_breaks_off_leaves_nothing(stack: Stack, bucket: str, files: SyncBucketProxy) -> None:
    headers = {"apikey": stack.keys.secret, "content-type": "multipart/form-data; boundary=x"}
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 7 * MEGABYTE

    broken = httpx.post(f"{stack.url}/storage/v1/object/{bucket}/a", content=file, headers=headers)
    fieldless = httpx.post(f"{stack.url}/storage/v1/object/{bucket}/a", content=b"--x--\r\n", headers=headers)

    assert broken.json()["message"] == "Unexpected end of form"
    assert fieldless.json()["message"] == "No content provided"
    assert files.list() == []


def test_a_list_that_cannot_be_made_is_refused(stack: Stack, bucket: str) -> None:
    answers = [
        httpx.post(f"{stack.url}/storage/v1/object/list/{bucket}", json=body, headers={"apikey": stack.keys.secret})
        for body in (
            {"prefix": "", "limit": 0},
            {"prefix": "", "sortBy": {"column": "owner; drop table"}},
            {"prefix": "\0"},
            {},
        )
    ]

    assert [answer.json()["statusCode"] for answer in answers] == ["400"] * 4


def test_images_are_not_transformed(bucket: str, files: SyncBucketProxy) -> None:
    files.upload("a.png", b"", {"content-type": "image/png"})

    assert refusal(files.download, "a.png", {"transform": {"width": 10}})[1] == "FeatureNotEnabled"
    assert refusal(files.create_signed_url, "a.png", 60, {"transform": {"width": 10}})[1] == "FeatureNotEnabled"


def test_the_async_client_finds_the_same(stack: Stack, bucket: str) -> None:
    async def exchange() -> tuple[bytes, list[str], bool]:
        files = (await acreate_client(stack.url, stack.keys.secret)).storage.from_(bucket)
        await files.upload("a/b.txt", b"hello", TEXT)
        return (
            await files.download("a/b.txt"),
            [each["name"] for each in await files.list("a")],
            await files.exists("c"),
        )

    assert asyncio.run(exchange()) == (b"hello", ["b.txt"], False)


def test_supabase_js_finds_the_same(stack: Stack) -> None:
    seen = run_node("storage_client.mjs", stack.url, stack.keys.secret, stack.keys.publishable, f"js-{uuid4().hex}")

    names = ["blob", "buffer", "text", "stream"]
    assert seen["paths"] == [[f"a/{name}.txt", True, "string"] for name in names]
    assert seen["contents"] == names
    assert seen["metadata"] == [{"origin": "naïve", "tags": [1, 2]}] * 2
    assert seen["cacheControl"] == ["max-age=60", "max-age=3600"]
    assert (seen["upserted"], seen["updated"], seen["uploaded"]) == ("upserted", "updated", "signed")
    assert seen["signed"][0] == "updated"
    assert seen["many"] == [["a/text.txt", None, "string"], ["nowhere", NOWHERE, "object"]]
    assert seen["listed"] == [["a", None, None], ["b", None, None]]
    assert seen["page"] == [["buffer.txt", 6, "text/plain"], ["stream.txt", 6, "text/plain"]]
    assert seen["pages"] == [[True, ["a/blob.txt", "a/buffer.txt", "a/stream.txt"]], [False, ["a/text.txt"]]]
    assert (seen["exists"], seen["removed"]) == ([False, True], ["c/moved.txt"])
    assert seen["shown"] == ["updated", "attachment;"]
    assert seen["settings"] == [True, 20_000, ["text/plain"]]
    assert {name: told[:2] for name, told in seen["refused"].items()} == {
        "duplicate": [400, "409"],
        "large": [400, "413"],
        "largeForm": [400, "413"],
        "image": [400, "415"],
        "unicode": [400, "400"],
        "missing": [400, "404"],
        "visitor": [400, "403"],
        "full": [400, "409"],
    }
    assert (seen["emptied"], seen["deleted"]) == ("Successfully emptied", "Successfully deleted")
