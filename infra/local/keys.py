"""The embedded stack's keys: made once per data folder, kept readable by their owner only."""

import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jwt


@dataclass(frozen=True, slots=True)
class Keys:
    """What a hosted project shows under "API keys"; `jwt_secret` signs the users' access tokens (HS256)."""

    publishable: str
    secret: str
    jwt_secret: str

    def __repr__(self) -> str:
        return "Keys(…)"

    @classmethod
    def load(cls, folder: Path) -> "Keys":
        """The folder's keys, made on first use."""
        file = folder / "keys.json"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = cls(
                publishable=f"sb_publishable_{secrets.token_urlsafe(24)}",
                secret=f"sb_secret_{secrets.token_urlsafe(24)}",
                jwt_secret=secrets.token_urlsafe(48),
            )
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as handle:
                json.dump(asdict(made), handle)
        return cls(**json.loads(file.read_text()))

    @classmethod
    def from_environment(cls) -> "Keys":
        """The keys of the stack that started this process."""
        return cls(
            publishable=os.environ["SUPABASE_PUBLISHABLE_KEY"],
            secret=os.environ["SUPABASE_SECRET_KEY"],
            jwt_secret=os.environ["SUPABASE_JWT_SECRET"],
        )

    @property
    def s3_access_key_id(self) -> str:
        """The S3 protocol's pair of keys follows from the others, so that nothing more need be kept."""
        return self._derived("s3 access key id")[:32]

    @property
    def s3_secret_access_key(self) -> str:
        return self._derived("s3 secret access key")

    def _derived(self, purpose: str) -> str:
        return hmac.digest(self.jwt_secret.encode(), f"{purpose} of {self.secret}".encode(), "sha256").hex()

    def claims(self, token: str | None) -> dict[str, Any] | None:
        """The claims an API key or an access token stands for; None refuses it."""
        if not token or secrets.compare_digest(token.encode(), self.publishable.encode()):
            return {"role": "anon"} if token else None
        if secrets.compare_digest(token.encode(), self.secret.encode()):
            return {"role": "service_role"}
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self.jwt_secret, algorithms=["HS256"], options={"verify_aud": False, "require": ["exp", "role"]}
            )
        except jwt.PyJWTError:
            return None
        return claims
