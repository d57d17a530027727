"""How often one may ask in a minute: counted in the database, for a user or for a client address."""

import hmac
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import httpx

from shared import database
from shared.auth import Anybody, ApiKey, Caller
from shared.errors import RateLimited
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Quota:
    """Whose calls are counted under what key, and how many a minute may bring."""

    key: str
    calls_per_minute: int
    is_visitors: bool = False


def of_turns(settings: Settings, caller: Anybody, address: str) -> Quota | None:
    """The quota of questions to the model; None for the secret key's holder, who isn't counted."""
    limits = settings.turns_per_minute, settings.anonymous_turns_per_minute
    return _quota(settings, caller, address, "", *limits)


def of_searches(settings: Settings, caller: Anybody, address: str) -> Quota | None:
    """The quota of searches, which cost no model's time; None for the secret key's holder."""
    limits = settings.searches_per_minute, settings.anonymous_searches_per_minute
    return _quota(settings, caller, address, ":search", *limits)


async def count(http: httpx.AsyncClient, settings: Settings, quota: Quota | None) -> None:
    """Count a call. Raises `RateLimited`, and the database's error where it can't be counted.

    As the gateway: a caller who could count for himself could use up the quota of others.
    """
    if quota is None:
        return
    arguments = {"caller_key": quota.key, "calls_per_minute": quota.calls_per_minute}
    wait_seconds = await database.call(database.as_gateway(http, settings), "count_call", arguments)
    if wait_seconds is not None:
        raise RateLimited("Too many questions in the last minute.", wait_seconds)


def _quota(
    settings: Settings, caller: Anybody, address: str, kind: str, user_limit: int, visitor_limit: int
) -> Quota | None:
    if caller is ApiKey.SECRET:
        return None
    if isinstance(caller, Caller):
        return Quota(f"user:{caller.auth_user_id.lower()}{kind}", user_limit)
    return Quota(f"address:{_hashed(settings, address)}{kind}", visitor_limit, is_visitors=True)


def _hashed(settings: Settings, address: str) -> str:
    """The address, not to be read from the table; of IPv6 the /64, all of which one subscriber has."""
    try:
        host = ip_address(address)
        host = (host.version == 6 and host.ipv4_mapped) or host
        place = str(ip_network((host, 64), strict=False) if host.version == 6 else host)
    except ValueError:
        place = address
    return hmac.digest(settings.supabase_secret_key.get_secret_value().encode(), place.encode(), "sha256").hex()
