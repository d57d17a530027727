"""Which access tokens are believed, over HTTP: those of the project's secret, and those of its published keys."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.stack import Stack
from shared.auth import CLOCK_SKEW_SECONDS
from tests.stand_ins import serving
from tests.users import User

Claims = dict[str, Any]
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_STRANGER = ec.generate_private_key(ec.SECP256R1())
RSA_STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_PEM = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
PUBLISHED = [
    {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "ec", "alg": "ES256", "use": "sig"},
    {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "rsa", "alg": "RS256", "use": "sig"},
]
# Keys that others may publish beside theirs: a shared secret, another curve, one without an id, one cut short.
UNUSABLE = [
    {"kty": "oct", "kid": "oct", "k": "c2VjcmV0"},
    {**ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True), "kid": "p384"},
    ECAlgorithm.to_jwk(EC_STRANGER.public_key(), as_dict=True),
    {"kty": "RSA", "kid": "cut"},
]


@dataclass(slots=True)
class Project:
    """A Supabase project's origin: it publishes `keys`, and its database believes everybody."""

    keys: list[dict[str, Any]] = field(default_factory=lambda: PUBLISHED)
    url: str = ""
    fetches: int = 0
    asked_with: list[str | None] = field(default_factory=list)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/auth/v1/.well-known/jwks.json", self.key_set),
                Route("/out-of-order", self.out_of_order),
                Route("/rest/v1/threads", self.threads),
            ]
        )

    async def key_set(self, _: Request) -> Response:
        self.fetches += 1
        return JSONResponse({"keys": self.keys})

    async def out_of_order(self, _: Request) -> Response:
        self.fetches += 1
        return Response(status_code=503)

    async def threads(self, request: Request) -> Response:
        self.asked_with.append(request.headers.get("authorization"))
        return JSONResponse([])


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    with published(PUBLISHED) as made:
        yield made


@pytest.fixture(scope="module")
def functions(stack: Stack, project: Project) -> Iterator[str]:
    """The functions of a project that has both: the secret of old, and keys that it publishes."""
    with stack.functions(SUPABASE_URL=project.url) as origin:
        yield origin


@contextmanager
def published(keys: list[dict[str, Any]]) -> Iterator[Project]:
    project = Project(keys)
    with serving(project.app()) as project.url:
        yield project


def ask(origin: str, authorization: str | bytes | None, apikey: str = "") -> httpx.Response:
    """A cheap question that only a signed-in user may ask."""
    headers = {"apikey": apikey, "authorization": authorization}
    sent: dict[str, Any] = {name: value for name, value in headers.items() if value is not None}
    return httpx.get(f"{origin}/functions/v1/ai-finance/threads", headers=sent)


def claims_for(url: str, **changes: Any) -> Claims:
    """A signed-in user's claims in the project at `url`; a change to None leaves the claim out."""
    claims = {
        "iss": f"{url}/auth/v1",
        "aud": "authenticated",
        "role": "authenticated",
        "sub": str(uuid4()),
        "exp": int(time.time()) + 600,
    }
    return {name: value for name, value in {**claims, **changes}.items() if value is not None}


def signed_by_hand(claims: Claims, header: Claims, secret: bytes) -> str:
    """HS256 of anything with anything; PyJWT would refuse to make such tokens."""
    message = b".".join(encoded(json.dumps(part).encode()) for part in (header, claims))
    return (message + b"." + encoded(hmac.digest(secret, message, hashlib.sha256))).decode()


def encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def assert_refused(answer: httpx.Response, status: int = 401, code: str = "unauthenticated") -> None:
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code)
    assert body == {
        "error": body["error"],
        "code": code,
        "requestId": answer.headers["x-request-id"],
        "retryable": status == 503,
    }
    assert body["error"]


# What stands where `Bearer <access token>` should, made from the stack and a good token's claims.
FORGERIES: dict[str, Callable[[Stack, Claims], str]] = {
    "algorithm none": lambda _, claims: jwt.encode(claims, "", "none"),
    "no signature": lambda stack, claims: jwt.encode(claims, stack.keys.jwt_secret).rpartition(".")[0] + ".",
    "another secret": lambda _, claims: jwt.encode(claims, "x" * 64),
    "an empty secret": lambda _, claims: signed_by_hand(claims, {"alg": "HS256"}, b""),
    "the publishable key as secret": lambda stack, claims: jwt.encode(claims, stack.keys.publishable),
    "another HMAC": lambda stack, claims: jwt.encode(claims, stack.keys.jwt_secret, "HS512"),
    "an algorithm in small letters": lambda stack, claims: signed_by_hand(
        claims, {"alg": "hs256"}, stack.keys.jwt_secret.encode()
    ),
    "an algorithm that is a list": lambda stack, claims: signed_by_hand(
        claims, {"alg": ["HS256"]}, stack.keys.jwt_secret.encode()
    ),
    "no algorithm": lambda stack, claims: signed_by_hand(claims, {}, stack.keys.jwt_secret.encode()),
    "changed claims": lambda stack, claims: changed(jwt.encode(claims, stack.keys.jwt_secret)),
    "nested without end": lambda *_: f"{encoded(b'[' * 7000 + b']' * 7000).decode()}.e30.AA",
    "one part": lambda *_: "access-token",
    "three empty parts": lambda *_: "..",
    "four parts": lambda stack, claims: jwt.encode(claims, stack.keys.jwt_secret) + ".AA",
    "no JSON": lambda *_: "AAAA.AAAA.AAAA",
    "the publishable key": lambda stack, _: stack.keys.publishable,
    "the secret key": lambda stack, _: stack.keys.secret,
}
# A good token's claims with one change each.
MISFITS: dict[str, Callable[[Stack], Claims]] = {
    "expired": lambda _: {"exp": int(time.time()) - 60},
    "not yet valid": lambda _: {"nbf": int(time.time()) + 600},
    "of another project": lambda _: {"iss": "https://other.supabase.co/auth/v1"},
    "of the origin alone": lambda stack: {"iss": stack.url},
    "for another audience": lambda _: {"aud": "anon"},
    "without exp": lambda _: {"exp": None},
    "without sub": lambda _: {"sub": None},
    "without aud": lambda _: {"aud": None},
    "without iss": lambda _: {"iss": None},
    "without role": lambda _: {"role": None},
    "with an empty sub": lambda _: {"sub": ""},
    "with a number for sub": lambda _: {"sub": 1},
    "with a word for exp": lambda _: {"exp": "never"},
    "of a visitor": lambda _: {"role": "anon"},
    "of the service role": lambda _: {"role": "service_role"},
    "of the database's owner": lambda _: {"role": "postgres"},
    "of two roles": lambda _: {"role": ["authenticated"]},
}


def changed(token: str) -> str:
    """The token's claims with another subject, under its old signature."""
    header, claims, signature = token.split(".")
    padded = claims + "=" * (-len(claims) % 4)
    other = json.loads(base64.urlsafe_b64decode(padded)) | {"sub": str(uuid4())}
    return f"{header}.{encoded(json.dumps(other).encode()).decode()}.{signature}"


def test_a_signed_in_users_token_is_believed(stack: Stack) -> None:
    token = User.sign_up(stack).token

    answers = [ask(stack.url, f"{scheme} {token}") for scheme in ("Bearer", "bearer")]

    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"threads": [], "next": None})] * 2


@pytest.mark.parametrize("changes", [{}, {"aud": ["authenticated", "other"]}, {"user_id": 7}])
def test_a_token_signed_with_the_projects_secret_is_believed(stack: Stack, changes: Claims) -> None:
    token = jwt.encode(claims_for(stack.url, **changes), stack.keys.jwt_secret)

    assert ask(stack.url, f"Bearer {token}").status_code == 200


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_token_is_refused(stack: Stack, forge: Callable[[Stack, Claims], str]) -> None:
    token = forge(stack, claims_for(stack.url))

    answer = ask(stack.url, f"Bearer {token}", stack.keys.publishable)

    assert_refused(answer)
    assert token not in answer.text


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_a_well_signed_token_is_refused(stack: Stack, misfit: Callable[[Stack], Claims]) -> None:
    token = jwt.encode(claims_for(stack.url, **misfit(stack)), stack.keys.jwt_secret)

    assert_refused(ask(stack.url, f"Bearer {token}", stack.keys.publishable))


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Basic YTpi", "Basic {token}", "{token}", "Bearer é".encode()]
)
def test_what_is_no_bearer_token_is_refused(stack: Stack, authorization: str | bytes | None) -> None:
    token = jwt.encode(claims_for(stack.url), stack.keys.jwt_secret)
    sent = authorization.replace("{token}", token) if isinstance(authorization, str) else authorization

    assert_refused(ask(stack.url, sent, stack.keys.publishable))


@pytest.mark.parametrize(
    ("key", "algorithm", "key_id"), [(EC_KEY, "ES256", "ec"), (RSA_KEY, "RS256", "rsa")], ids=["ES256", "RS256"]
)
def test_a_token_signed_with_a_published_key_is_believed_and_sent_on(
    functions: str, project: Project, key: Any, algorithm: str, key_id: str
) -> None:
    token = jwt.encode(claims_for(project.url), key, algorithm, {"kid": key_id})

    answer = ask(functions, f"Bearer {token}")

    assert answer.status_code == 200
    assert project.asked_with[-1] == f"Bearer {token}"


def test_the_secret_is_still_good_where_keys_are_published(stack: Stack, functions: str, project: Project) -> None:
    token = jwt.encode(claims_for(project.url), stack.keys.jwt_secret)

    assert ask(functions, f"Bearer {token}").status_code == 200


# The header that a token claims, and the key that has really signed it.
CONFUSIONS: dict[str, tuple[Claims, Any]] = {
    "HMAC with the public key": ({"alg": "HS256", "kid": "rsa"}, RSA_PEM),
    "HMAC with the public key, no id": ({"alg": "HS256"}, RSA_PEM),
    "HMAC with the public key, said to be RS256": ({"alg": "RS256", "kid": "rsa"}, RSA_PEM),
    "ES256 under the RSA key's id": ({"alg": "ES256", "kid": "rsa"}, EC_KEY),
    "RS256 under the EC key's id": ({"alg": "RS256", "kid": "ec"}, RSA_KEY),
    "a stranger's EC key": ({"alg": "ES256", "kid": "ec"}, EC_STRANGER),
    "a stranger's RSA key": ({"alg": "RS256", "kid": "rsa"}, RSA_STRANGER),
    "another padding": ({"alg": "PS256", "kid": "rsa"}, RSA_KEY),
    "another digest": ({"alg": "RS512", "kid": "rsa"}, RSA_KEY),
    "another kind of key": ({"alg": "EdDSA", "kid": "ec"}, ed25519.Ed25519PrivateKey.generate()),
    "an unknown id": ({"alg": "ES256", "kid": "gone"}, EC_KEY),
    "an empty id": ({"alg": "ES256", "kid": ""}, EC_KEY),
    "no id": ({"alg": "ES256"}, EC_KEY),
    "its own key": (
        {"alg": "ES256", "kid": "ec", "jwk": ECAlgorithm.to_jwk(EC_STRANGER.public_key(), as_dict=True)},
        EC_STRANGER,
    ),
}


@pytest.mark.parametrize(("header", "key"), CONFUSIONS.values(), ids=CONFUSIONS)
def test_a_token_does_not_choose_how_it_is_checked(functions: str, project: Project, header: Claims, key: Any) -> None:
    claims = claims_for(project.url)
    if isinstance(key, bytes):
        token = signed_by_hand(claims, header, key)
    else:
        token = jwt.encode(claims, key, header["alg"], header)

    assert_refused(ask(functions, f"Bearer {token}", "sb_publishable_any"))
    assert f"Bearer {token}" not in project.asked_with


def test_a_storm_of_unknown_keys_is_no_storm_of_fetches(functions: str, project: Project) -> None:
    fetches = project.fetches

    answers = storm(functions, project)

    for answer in answers:
        assert_refused(answer)
    assert project.fetches - fetches <= 2


def test_without_the_secret_only_published_keys_count(stack: Stack, project: Project) -> None:
    claims = claims_for(stack.url)
    fetches = project.fetches
    with stack.functions(SUPABASE_JWT_SECRET="", SUPABASE_JWKS=json.dumps({"keys": PUBLISHED})) as origin:
        by_secret = ask(origin, f"Bearer {jwt.encode(claims, stack.keys.jwt_secret)}")
        by_public_key = ask(origin, f"Bearer {signed_by_hand(claims, {'alg': 'HS256'}, RSA_PEM)}")
        by_stranger = ask(origin, f"Bearer {jwt.encode(claims, EC_STRANGER, 'ES256', {'kid': 'ec'})}")
        by_unknown_key = ask(origin, f"Bearer {jwt.encode(claims, EC_KEY, 'ES256', {'kid': 'gone'})}")

    for answer in (by_secret, by_public_key, by_stranger, by_unknown_key):
        assert_refused(answer)
    assert project.fetches == fetches


def test_a_token_that_was_good_is_refused_when_its_time_is_over(stack: Stack, functions: str, project: Project) -> None:
    claims = claims_for(project.url) | {"exp": int(time.time()) - CLOCK_SKEW_SECONDS + 2}
    token = jwt.encode(claims, stack.keys.jwt_secret)

    assert ask(functions, f"Bearer {token}").status_code == 200
    time.sleep(2.5)
    assert_refused(ask(functions, f"Bearer {token}"))


def test_keys_it_cannot_use_do_not_spoil_the_set(stack: Stack) -> None:
    with published([*UNUSABLE, *PUBLISHED]) as project:
        tokens = [
            jwt.encode(claims_for(project.url), EC_KEY, "ES256", {"kid": "ec"}),
            jwt.encode(claims_for(project.url), RSA_KEY, "RS256", {"kid": "rsa"}),
        ]

        with stack.functions(SUPABASE_URL=project.url, SUPABASE_JWT_SECRET="") as origin:
            answers = [ask(origin, f"Bearer {token}") for token in tokens]

    assert [answer.status_code for answer in answers] == [200, 200]


def test_keys_that_cannot_be_fetched_are_worth_another_try_but_no_storm(stack: Stack, project: Project) -> None:
    fetches = project.fetches
    with stack.functions(SUPABASE_URL=project.url, SUPABASE_JWKS_URL=f"{project.url}/out-of-order") as origin:
        answers = storm(origin, project)
        by_secret = ask(origin, f"Bearer {jwt.encode(claims_for(project.url), stack.keys.jwt_secret)}")

    for answer in answers:
        assert_refused(answer, 503, "unavailable")
    assert by_secret.status_code == 200
    assert project.fetches - fetches <= 2


def storm(origin: str, project: Project) -> list[httpx.Response]:
    """The answers to twenty tokens at once, each of a key that nobody knows."""
    claims = claims_for(project.url)
    tokens = [jwt.encode(claims, EC_STRANGER, "ES256", {"kid": str(number)}) for number in range(20)]
    with ThreadPoolExecutor(20) as threads:
        return list(threads.map(lambda token: ask(origin, f"Bearer {token}"), tokens))
