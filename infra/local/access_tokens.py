"""Access tokens as GoTrue issues them: lite's own, signed again with the claims it leaves out."""

from typing import Any

import jwt
from psycopg_pool import AsyncConnectionPool

from infra.local.auth_admin import AuthError
from infra.local.keys import Keys

ALGORITHM = "HS256"


async def complete(session: dict[str, Any], keys: Keys, issuer: str, pool: AsyncConnectionPool) -> dict[str, Any]:
    """Auth's answer with its access token completed; an answer without one (a sign-up to confirm) stays as it is.

    Raises `AuthError` for a banned user, whom lite would let in.
    """
    if "access_token" not in session:
        return session
    claims = jwt.decode(session["access_token"], keys.jwt_secret, [ALGORITHM], audience="authenticated")
    claims |= await _metadata(pool, claims["sub"])
    claims |= {
        "iss": issuer,
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": claims["iat"]}],
        "is_anonymous": False,
    }
    return {**session, "access_token": jwt.encode(claims, keys.jwt_secret, ALGORITHM)}


async def _metadata(pool: AsyncConnectionPool, user_id: str) -> dict[str, Any]:
    """The claims no client can write: read from the user's row, not from anything that was sent."""
    async with pool.connection() as connection:
        found = await connection.execute(
            """
            select raw_app_meta_data, raw_user_meta_data, coalesce(banned_until > now(), false)
            from auth.users where id = %s
            """,
            [user_id],
        )
        [(app_metadata, user_metadata, is_banned)] = await found.fetchall()
    if is_banned:
        raise AuthError(400, "user_banned", "User is banned")
    return {"app_metadata": app_metadata, "user_metadata": user_metadata}
