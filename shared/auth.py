"""Who is calling: Supabase access tokens, verified here without a round trip, and the project's own API keys."""

import asyncio
import hmac
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import httpx

from shared.errors import Forbidden, Unauthenticated, Unavailable
from shared.settings import Settings

if TYPE_CHECKING:
    from jwt import PyJWK

ASYMMETRIC = {"EC": "ES256", "RSA": "RS256"}
KEYS_FRESH_SECONDS = 600  # Supabase's own edge caches the key set as long
KEYS_RETRY_SECONDS = 30  # tokens with made-up key ids must not become a storm of fetches
CLOCK_SKEW_SECONDS = 5
BELIEVED, BELIEVED_SECONDS = 1000, 60  # tokens that aren't checked again: a key that is withdrawn ends them with it
UUID_FORM = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class Caller:
    """A signed-in user; `token` is sent on, so that row level security sees the user too.

    `is_admin` is what row level security goes by as well: the `role` in the token's `app_metadata`, which
    only the project's server can set; `claimed_user_id` is the users.user_id of an app that mints its own tokens.
    """

    auth_user_id: str
    token: str = field(repr=False)
    is_admin: bool = False
    claimed_user_id: int | None = None


class ApiKey(Enum):
    """Whoever calls with a key of the project and no user: a visitor, or another server."""

    PUBLISHABLE = "publishable"
    SECRET = "secret"  # noqa: S105  # the key's kind, not a key


Anybody = Caller | ApiKey


def claimed_user_id(caller: Caller, user_id: int | str | None) -> int | None:
    """The users.user_id a body names, for the database to hold against the caller's own.

    A client may send its auth id instead, which is settled here. Raises `Forbidden` for another's.
    """
    if user_id is None or str(user_id).lower() == caller.auth_user_id.lower():
        return None
    if re.fullmatch(r"[0-9]{1,18}", str(user_id)):
        return int(user_id)
    raise Forbidden("userId is not the signed-in user's: leave it out, or send the caller's own.")


@dataclass(slots=True)
class Verifier:
    """The project's signing keys, and the tokens of the last minute that were good, kept between requests."""

    settings: Settings
    http: httpx.AsyncClient
    keys: "dict[str, PyJWK]" = field(default_factory=dict)
    fetched_at: float = float("-inf")
    is_reachable: bool = True
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    believed: dict[str, tuple[Caller, float]] = field(default_factory=dict, repr=False)  # and until when

    async def identify(self, authorization: str | None, apikey: str | None) -> Anybody:
        """Who calls with these headers; `Authorization`, where there is one, alone decides.

        supabase-js sends the API key as `Authorization: Bearer …` too as long as nobody has signed in. A token
        that can't be trusted is refused, however good the `apikey` beside it. Raises `Unauthenticated`.
        """
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            key = self._key_kind(token) if scheme.lower() == "bearer" else None
            return key or await self.verify(authorization)
        if apikey is None:
            raise Unauthenticated("Send the project's publishable key as `apikey`, or a user's access token.")
        if key := self._key_kind(apikey):
            return key
        raise Unauthenticated("The apikey is none of this project's: send its publishable key.")

    async def verify(self, authorization: str | None) -> Caller:
        """The caller of an `Authorization: Bearer …` header.

        HS256 goes with the project's secret only, ES256 and RS256 with a key of the key set of that very
        kind, so that no token chooses how it is checked. Raises `Unauthenticated`.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("Sign in, and send the user's access token as `Authorization: Bearer …`.")
        if self._key_kind(token):
            raise Unauthenticated("This is the project's key: sign in, and send the session's access token instead.")
        caller, until = self.believed.get(token, (None, 0))
        if caller and time.time() < until:
            return caller
        import jwt  # 45 ms, with cryptography, that a visitor's cold start and a queue's don't pay

        try:
            header = jwt.get_unverified_header(token)
            claims = await self._decode(token, header.get("alg", ""), header.get("kid", ""))
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("The access token has expired: refresh the session and ask again.") from error
        except jwt.PyJWTError as error:
            raise Unauthenticated("The access token can't be trusted: sign in again.") from error
        if claims.get("role") != "authenticated" or not claims["sub"]:
            raise Unauthenticated("This needs a signed-in user's access token.")
        if not UUID_FORM.fullmatch(claims["sub"]):
            raise Unauthenticated("The access token's subject is no Supabase user: sub must be a UUID.")
        caller = Caller(
            auth_user_id=claims["sub"],
            token=token,
            is_admin=_is_admin(claims),
            claimed_user_id=_user_id(claims),
        )
        if len(self.believed) >= BELIEVED:
            self.believed.pop(next(iter(self.believed)))
        self.believed[token] = caller, min(claims["exp"], time.time() + BELIEVED_SECONDS)
        return caller

    def _key_kind(self, key: str) -> ApiKey | None:
        """Which of the project's keys it is, compared in constant time."""
        keys = {
            ApiKey.SECRET: self.settings.supabase_secret_key.get_secret_value(),
            ApiKey.PUBLISHABLE: self.settings.supabase_publishable_key,
        }
        kinds = [kind for kind, known in keys.items() if hmac.compare_digest(key.encode(), known.encode())]
        return kinds[0] if kinds else None

    async def _decode(self, token: str, algorithm: str, key_id: str) -> dict[str, Any]:
        import jwt

        key: PyJWK | str
        if algorithm == "HS256" and self.settings.supabase_jwt_secret:
            key = self.settings.supabase_jwt_secret.get_secret_value()
        elif algorithm in ASYMMETRIC.values():
            key = await self._key(key_id)
            if ASYMMETRIC.get(key.key_type or "") != algorithm:
                raise jwt.InvalidAlgorithmError("the key is of another kind")
        else:
            raise jwt.InvalidAlgorithmError("not an algorithm of this project")
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience="authenticated",
            issuer=self.settings.supabase_jwt_issuer,
            leeway=CLOCK_SKEW_SECONDS,
            options={"require": ["exp", "sub", "aud", "iss"]},
        )
        return claims

    async def _key(self, key_id: str) -> "PyJWK":
        from jwt import InvalidKeyError

        if self.settings.supabase_jwks is not None:
            self.keys = self.keys or _signing_keys(self.settings.supabase_jwks)
        elif self._is_stale(key_id):
            async with self.fetching:
                if self._is_stale(key_id):  # those who waited find it fetched
                    await self._fetch()
        if key_id in self.keys:
            return self.keys[key_id]
        if self.is_reachable:
            raise InvalidKeyError("no key of this id")
        raise Unavailable("The project's signing keys can't be fetched: try again.")

    def _is_stale(self, key_id: str) -> bool:
        age = time.monotonic() - self.fetched_at
        return age > (KEYS_FRESH_SECONDS if key_id in self.keys and self.is_reachable else KEYS_RETRY_SECONDS)

    async def _fetch(self) -> None:
        try:
            answer = (await self.http.get(self.settings.supabase_jwks_url, timeout=5)).raise_for_status()
            self.keys, self.is_reachable = _signing_keys(answer.json()), True
        except (httpx.HTTPError, ValueError, TypeError, AttributeError):
            self.is_reachable = False  # the keys that are known stay good
        self.fetched_at = time.monotonic()  # last, so that nobody goes by it who should wait for the fetch


def _is_admin(claims: dict[str, Any]) -> bool:
    """An app's own tokens may hold anything there."""
    app_metadata = claims.get("app_metadata")
    return isinstance(app_metadata, dict) and app_metadata.get("role") == "admin"


def _user_id(claims: dict[str, Any]) -> int | None:
    """As `private.current_user_id` reads it."""
    claimed = str(claims.get("user_id"))
    return int(claimed) if re.fullmatch(r"[0-9]{1,18}", claimed, re.ASCII) else None


def _signing_keys(key_set: dict[str, Any]) -> "dict[str, PyJWK]":
    """The set's usable keys by id; RFC 7517 has us pass over the others."""
    import jwt

    keys = {}
    for entry in key_set.get("keys", []):
        if entry.get("kty") in ASYMMETRIC and entry.get("kid"):
            with suppress(jwt.PyJWTError):
                keys[entry["kid"]] = jwt.PyJWK(entry, algorithm=ASYMMETRIC[entry["kty"]])
    return keys
