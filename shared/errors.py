"""What can go wrong, drawn as a tree; each error knows its status, its code and whether to ask again.

    GatewayError                 500  internal
    ├── Misconfigured            500  misconfigured
    ├── InvalidRequest           422  invalid_request
    │   ├── InvalidJson          400  invalid_json
    │   ├── BodyTooLarge         413  body_too_large
    │   ├── SecretInMessage      422  secret_in_message
    │   ├── UnknownModel         422  invalid_request
    │   ├── Unsupported          422  unsupported
    │   ├── KeyReused            422  idempotency_key_reused
    │   ├── ArtifactRefused      422  artifact_refused
    │   │   └── PickleRefused    422  pickle_refused
    │   ├── SourceRefused        422  source_refused
    │   └── SourceChanged        409  source_changed
    ├── AnswerTooLarge           413  answer_too_large
    ├── Unauthenticated          401  unauthenticated
    ├── Forbidden                403  forbidden
    ├── NotFound                 404  not_found
    ├── MethodNotAllowed         405  method_not_allowed
    ├── Conflict                 409  conflict
    │   ├── TransferRunning      409  transfer_running        retryable
    │   └── GateRefused          409  gate_refused
    ├── TurnRunning              409  turn_running            retryable
    ├── RateLimited              429  rate_limited            retryable
    │   └── QuotaExhausted       429  quota_exhausted         retryable
    └── Unavailable              503  unavailable             retryable
        ├── DatabaseUnavailable  503  database_unavailable    retryable
        ├── EmbeddingUnavailable 503  embedding_unavailable   retryable
        ├── ModelUnavailable     503  model_unavailable       retryable
        ├── StorageUnavailable   503  storage_unavailable     retryable
        └── DeadlineExceeded     504  deadline_exceeded       retryable

One shape leaves the building: `{"error", "code", "requestId", "retryable"}`; `chat_completions` has OpenAI's for its
clients. Messages are written to be shown.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class GatewayError(Exception):
    """Something went wrong here; the log has the kind of it."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "Something went wrong on our side.", retry_after_seconds: int | None = None):
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    def body(self, request_id: str) -> dict[str, Any]:
        """The error as the client sees it."""
        return {"error": self.message, "code": self.code, "requestId": request_id, "retryable": self.retryable}


class Misconfigured(GatewayError):
    """A setting is missing or malformed; the message names all of them and never their values."""

    code = "misconfigured"


class InvalidRequest(GatewayError):
    """The request can't be served as it stands; the message says what to change."""

    status, code = 422, "invalid_request"


class InvalidJson(InvalidRequest):
    """The body is not JSON."""

    status, code = 400, "invalid_json"


class BodyTooLarge(InvalidRequest):
    """The body is larger than any request of this API needs to be."""

    status, code = 413, "body_too_large"


class SecretInMessage(InvalidRequest):
    """The message holds what nobody should ever send: a seed phrase or a private key."""

    code = "secret_in_message"


class UnknownModel(InvalidRequest):
    """The request names a model that is none it may ask for."""


class Unsupported(InvalidRequest):
    """The request asks for what OpenAI's API has and this one hasn't, and what can't be left out of an answer."""

    code = "unsupported"


class KeyReused(InvalidRequest):
    """The idempotency key came with another message before."""

    code = "idempotency_key_reused"


class ArtifactRefused(InvalidRequest):
    """A model's file is none that is taken, or isn't whole; the message names the file and what to do."""

    code = "artifact_refused"


class PickleRefused(ArtifactRefused):
    """A model's file is a pickle, which runs code when it is loaded."""

    code = "pickle_refused"


class SourceRefused(InvalidRequest):
    """The address of a model's files isn't allowed, or there is nothing to be read."""

    code = "source_refused"


class SourceChanged(InvalidRequest):
    """A file at the source is no longer the one whose transfer had begun."""

    status, code = 409, "source_changed"


class AnswerTooLarge(GatewayError):
    """What was asked for is more than one answer can carry."""

    status, code = 413, "answer_too_large"


class Unauthenticated(GatewayError):
    """There is no access token, or one that can't be trusted."""

    status, code = 401, "unauthenticated"


class Forbidden(GatewayError):
    """The caller is known, and may not do this."""

    status, code = 403, "forbidden"


class NotFound(GatewayError):
    """There is no such thing, or none the caller may see."""

    status, code = 404, "not_found"


class MethodNotAllowed(GatewayError):
    """The path exists, with other methods."""

    status, code = 405, "method_not_allowed"


class TurnRunning(GatewayError):
    """The first request with this idempotency key is still being answered; `pending` is a worker's turn and thread."""

    status, code, retryable = 409, "turn_running", True

    def __init__(self, message: str, retry_after_seconds: int | None = None, pending: tuple[int, str] | None = None):
        super().__init__(message, retry_after_seconds)
        self.pending = pending


class Conflict(GatewayError):
    """What is there now doesn't allow it; the message says what is there."""

    status, code = 409, "conflict"


class TransferRunning(Conflict):
    """A worker has the version's files in hand."""

    code, retryable = "transfer_running", True


class GateRefused(Conflict):
    """An evaluation says that a version should have no users; the answer has what it came to."""

    code = "gate_refused"

    def __init__(self, message: str, evaluation: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.evaluation = evaluation

    def body(self, request_id: str) -> dict[str, Any]:
        return {**super().body(request_id), "evaluation": self.evaluation}


class RateLimited(GatewayError):
    """The caller has asked too often."""

    status, code, retryable = 429, "rate_limited", True


class QuotaExhausted(RateLimited):
    """The caller's plan has no tokens or no money left for this period."""

    code = "quota_exhausted"


class Unavailable(GatewayError):
    """Something the gateway needs doesn't answer."""

    status, code, retryable = 503, "unavailable", True


class DatabaseUnavailable(Unavailable):
    """The database can't be reached, or refused a call it should have served."""

    code = "database_unavailable"


class EmbeddingUnavailable(Unavailable):
    """The embedding provider failed."""

    code = "embedding_unavailable"


class ModelUnavailable(Unavailable):
    """The model failed, or answered nothing."""

    code = "model_unavailable"


class StorageUnavailable(Unavailable):
    """Files can't be read where they are or written where they go, for now."""

    code = "storage_unavailable"


class DeadlineExceeded(Unavailable):
    """The request's time is used up."""

    status, code = 504, "deadline_exceeded"


def of_code(code: str | None, message: str = "The answer failed: ask again.") -> GatewayError:
    """The error a code names; of a stored conversation's the message is lost."""
    kinds = [GatewayError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    found = next((kind for kind in kinds if kind.code == code), GatewayError)
    return found(message)
