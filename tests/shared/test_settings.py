"""The environment as the functions read it: what is wrong is named at once, and no value is ever told."""

import re

import pytest
from pydantic import AliasChoices

from infra.local.parts import ROOT
from infra.local.stack import Stack
from shared.settings import Settings
from tests.users import User

EXAMPLE = ROOT / ".env.example"
SOURCE = ROOT / "shared/settings.py"
SECRETS = {
    name: f"hidden-{name.lower()}"
    for name in ("SUPABASE_SECRET_KEY", "SUPABASE_JWT_SECRET", "MODEL_API_KEY", "EMBEDDING_API_KEY")
}
PLAIN = {
    "SUPABASE_URL": "https://abc.supabase.co",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_1",
    "MODEL_BASE_URL": "https://api.openai.com/v1",
    "MODEL_NAME": "gpt",
    "EMBEDDING_BASE_URL": "https://api.openai.com/v1",
    "EMBEDDING_MODEL": "text-embedding-3-small",
}


@pytest.fixture(scope="module")
def user(stack: Stack) -> User:
    return User.sign_up(stack)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (
            {"SUPABASE_URL": "", "SUPABASE_SECRET_KEY": "", "MODEL_NAME": ""},
            ["MODEL_NAME", "SUPABASE_SECRET_KEY", "SUPABASE_URL"],
        ),
        (
            {
                "EMBEDDING_MODEL": "",
                "MODEL_BASE_URL": "postgres://hidden",
                "SUPABASE_JWKS": "hidden",
                "ANSWER_TOKENS": "-77",
            },
            ["ANSWER_TOKENS", "EMBEDDING_MODEL", "MODEL_BASE_URL", "SUPABASE_JWKS"],
        ),
    ],
    ids=["missing", "malformed"],
)
def test_all_that_is_missing_or_malformed_is_named_at_once(
    stack: Stack, user: User, settings: dict[str, str], names: list[str]
) -> None:
    with stack.functions(**settings) as origin:
        answer = user.call(origin, "GET", "/threads")

    assert answer.status_code == 500
    assert answer.json() == {
        "error": f"Missing or malformed settings: {', '.join(names)}.",
        "code": "misconfigured",
        "requestId": answer.headers["x-request-id"],
        "retryable": False,
    }


def test_a_url_may_end_in_a_slash() -> None:
    settings = Settings.model_validate({**PLAIN, **SECRETS, "SUPABASE_URL": "https://abc.supabase.co/"})

    assert settings.supabase_url == "https://abc.supabase.co"
    assert settings.supabase_jwt_issuer == "https://abc.supabase.co/auth/v1"
    assert settings.supabase_jwks_url == "https://abc.supabase.co/auth/v1/.well-known/jwks.json"


def test_keys_may_have_their_older_names(stack: Stack, user: User) -> None:
    older = {"SUPABASE_ANON_KEY": stack.keys.publishable, "SUPABASE_SERVICE_ROLE_KEY": stack.keys.secret}
    with stack.functions(SUPABASE_PUBLISHABLE_KEY="", SUPABASE_SECRET_KEY="", **older) as origin:
        answer = user.call(origin, "GET", "/threads")

    assert answer.status_code == 200, answer.text


def test_secrets_do_not_show() -> None:
    settings = Settings.model_validate({**PLAIN, **SECRETS})

    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"

    assert settings.supabase_secret_key.get_secret_value() == SECRETS["SUPABASE_SECRET_KEY"]
    assert PLAIN["SUPABASE_URL"] in shown
    assert "hidden" not in shown


def test_the_example_names_every_setting_and_no_other() -> None:
    fields = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        fields.add(str(alias.choices[0]) if isinstance(alias, AliasChoices) else name.upper())
    read_apart = set(re.findall(r'environ\.get\("((?!AWS_)\w+)"', SOURCE.read_text()))

    named = re.findall(r"^(?:# ?)?([A-Z][A-Z0-9_]+)=", EXAMPLE.read_text(), re.MULTILINE)

    assert sorted(named) == sorted(fields | read_apart)
