"""What went wrong with a model call: one pure function from whatever was raised to our error tree.

Looks at attributes and class names only, so that it needs no vendor package and works for every transport. The
order of trust: error code, error type, status, the module that raised, Python's own exceptions. Messages are read
only where the service gives nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any, cast

from understudy.endpoint.model import Usage
from understudy.errors import (
    AuthenticationFailed,
    ContextOverflow,
    EndpointUnavailable,
    MalformedOutput,
    ModelFailure,
    Overloaded,
    RateLimited,
    Refused,
    RequestRejected,
    SchemaTooComplex,
    SpendLimitReached,
    UnderstudyError,
)

# Codes that say more than type and status do, of every vendor: none means two things. A spend limit arrives as a 429,
# like a rate limit, and no wait cures it.
_BY_CODE: Mapping[str, type[ModelFailure]] = {
    "ramp_limit_exceeded": RateLimited,
    "enforced_spend_limit_reached": SpendLimitReached,
    "contract_spend_limit_reached": SpendLimitReached,
    "linked_organization_spend_limit_reached": SpendLimitReached,
    "linked_organization_billing_unavailable": SpendLimitReached,
    "organization_on_hold": AuthenticationFailed,
    "compaction_unavailable": Overloaded,
    "request_body_timeout": EndpointUnavailable,
    "insufficient_quota": SpendLimitReached,
    "billing_hard_limit_reached": SpendLimitReached,
    "billing_not_active": SpendLimitReached,
    "rate_limit_exceeded": RateLimited,
    "server_is_overloaded": Overloaded,
    "slow_down": Overloaded,
    "invalid_api_key": AuthenticationFailed,
    "account_deactivated": AuthenticationFailed,
    "model_not_found": RequestRejected,  # also as a 403, when the key's project may not use that model
    "context_length_exceeded": ContextOverflow,
    "content_filter": Refused,
    "content_policy_violation": Refused,
}

# `invalid_request_error` is missing on purpose: it stands for too many things, see `_rejection`.
_BY_TYPE: Mapping[str, type[ModelFailure]] = {
    "rate_limit_error": RateLimited,
    "overloaded_error": Overloaded,
    "billing_error": SpendLimitReached,
    "authentication_error": AuthenticationFailed,
    "permission_error": AuthenticationFailed,
    "not_found_error": RequestRejected,
    "request_too_large": ContextOverflow,  # too many bytes, whatever they count in tokens: less of them is the cure
    "timeout_error": EndpointUnavailable,
    "conflict_error": EndpointUnavailable,
    "api_error": EndpointUnavailable,
    "server_error": EndpointUnavailable,
    "insufficient_quota": SpendLimitReached,
    "exceed_context_size_error": ContextOverflow,
}

_BY_STATUS: Mapping[int, type[ModelFailure]] = {
    401: AuthenticationFailed,
    402: SpendLimitReached,
    403: AuthenticationFailed,
    408: EndpointUnavailable,
    409: EndpointUnavailable,
    413: ContextOverflow,
    429: RateLimited,
    529: Overloaded,
}

_TRANSPORTS = frozenset({"httpx2", "httpx", "httpcore2", "httpcore", "h11", "aiohttp", "anyio"})

# Class names of transports (ours to know, not to import) for failures before the request left. aiohttp's come first:
# the bridge to httpx calls a server that hung up *after* the request a ConnectError too.
_SENT = frozenset({"ServerDisconnectedError", "ClientPayloadError", "ReadError", "ReadTimeout", "RemoteProtocolError"})
_NOT_SENT = frozenset({"ClientConnectorError", "ConnectionTimeoutError", "ConnectTimeout", "PoolTimeout", "gaierror",
                       "ConnectionRefusedError", "LocalProtocolError"})  # fmt: skip
_BAD_URL = frozenset({"UnsupportedProtocol", "InvalidURL", "NonHttpUrlClientError", "InvalidUrlClientError"})

# The prompt's length and the limit, in the words of each service.
_TOO_LONG = (
    re.compile(r"prompt is too long: (?P<tokens>\d+) tokens > (?P<limit>\d+) maximum"),
    re.compile(
        r"(?:maximum context length is|configured limit of) (?P<limit>\d+) tokens"
        r".*?(?:resulted in|requested|total of(?: at least)?) (?P<tokens>\d+) tokens",
        re.DOTALL,
    ),
    # A request that is larger than a whole minute's tokens: a 429 that no wait cures, but a shorter prompt does.
    re.compile(r"Request too large\b.*\bLimit:? (?P<limit>\d+), Requested:? (?P<tokens>\d+)", re.DOTALL),
)
_TOO_LONG_LOOSE = re.compile(
    r"prompt is too long|exceeds? (the )?(model's )?(available )?context (window|limit|size)|maximum context length is",
    re.IGNORECASE,
)
_NO_MONEY = re.compile(r"credit balance is too low|(spend|usage) limits?\b.*reached|reached .*\b(spend|usage) limits?",
                       re.IGNORECASE)  # fmt: skip
_TOO_COMPLEX = re.compile(r"grammar is too large|schema is too complex", re.IGNORECASE)
_QUOTED_CHARS = 500  # A proxy's HTML page can be long.
_NO_KEY = ("Could not resolve authentication method", "Missing credentials")


def classify(
    error: BaseException,
    *,
    usage: Usage | None = None,
    in_stream: bool = False,
    request_id: str | None = None,
    received_bytes: int = 0,
    now: float | None = None,
) -> ModelFailure | None:
    """Return the failure that *error* stands for, or None when it is none of the endpoint's.

    `in_stream` says that the answer had begun (the attempt is billed); `usage` is what was counted until then,
    `received_bytes` how much of its content had come, and `request_id` what the answer's headers said. `now` (seconds since the epoch) is needed only for a retry date from
    a service that sends no `date` of its own. `retry_after_s` is what the service asks for, uncapped: the caller has
    the deadline.
    """
    if isinstance(error, ModelFailure):
        return error
    if not isinstance(error, Exception) or isinstance(error, UnderstudyError):
        return None  # Cancellation and the end of the process are nobody's failure; our own errors have their names.
    status, names = _integer(getattr(error, "status_code", None)), _names(error)
    if status is None and "APIError" in names and isinstance(getattr(error, "body", None), Mapping):
        status = 200  # An error event, from an SDK whose errors within a stream have no status.
    if status is not None and "APIResponseValidationError" not in names:
        answered = _of_answer(error, status, usage, in_stream=in_stream or status < 400, now=now)
        return _with_received(answered, received_bytes if in_stream else 0)
    # What is known of an attempt without an answer; spelled out, so that every failure carries the same attributes.
    facts: dict[str, Any] = {
        "status": 200 if in_stream else None, "request_id": request_id, "retry_after_s": None, "error_code": None,
        "error_type": None, "usage": usage,
    }  # fmt: skip
    failure = _of_transport(error, facts, in_stream=in_stream) or _of_builtin(error, facts, in_stream=in_stream)
    if failure is None or not in_stream or _timed_out(_names_of_chain(error)):
        return failure  # What fell silent may have gone on unheard.
    return _with_received(failure, received_bytes)


def _with_received(failure: ModelFailure, received_bytes: int) -> ModelFailure:
    """Let a failure say how much of the answer had come."""
    if not received_bytes:
        return failure
    return type(failure)(str(failure), **vars(failure)["_facts"], received_bytes=received_bytes)


def _of_answer(
    error: Exception, status: int, usage: Usage | None, *, in_stream: bool, now: float | None
) -> ModelFailure:
    """The service answered: code, type, then status."""
    code = _string(getattr(error, "error_code", None)) or _string(getattr(error, "code", None))
    kind = _string(getattr(error, "type", None))
    said = _said(error)
    headers = cast(Mapping[str, str], getattr(getattr(error, "response", None), "headers", None) or {})
    retry_after_s = retry_after(headers, now=now)
    request_id = _string(getattr(error, "request_id", None))
    # Within a stream some services put into the code what would have been the status.
    told = int(code) if status == 200 and code is not None and code.isdecimal() else status
    if code is not None and (code in _BY_CODE or code.endswith("_spend_limit_reached")):
        cls = _BY_CODE.get(code, SpendLimitReached)
    elif kind is not None and kind in _BY_TYPE:
        cls = _BY_TYPE[kind]
    elif told in _BY_STATUS:
        cls = _BY_STATUS[told]
    elif 400 <= told < 500 or kind == "invalid_request_error":
        cls = _rejection(said)
    else:  # 5xx, often HTML from a proxy without any type; or a stream that ended with an error nobody has seen yet.
        cls = EndpointUnavailable
    lengths = _lengths(said) if cls in (ContextOverflow, RateLimited) else None
    extra: dict[str, Any] = {}
    if cls is ContextOverflow or lengths is not None:
        cls, extra = ContextOverflow, lengths or {"tokens": None, "tokens_max": None}
    elif cls is Refused:
        extra = {"category": code}
    message = f"the model endpoint {'broke off its answer' if in_stream else 'answered'} with {status}"
    message += f" ({code or kind or 'no error type'}): {said[:_QUOTED_CHARS]}"
    if retry_after_s is not None:
        message += f"; it asks to wait {retry_after_s:g} s"
    if request_id is not None:
        message += f" [request {request_id}]"
    return cls(
        message, status=status, request_id=request_id, retry_after_s=retry_after_s, error_code=code, error_type=kind,
        sent=True, billed=in_stream, usage=usage, **extra,
    )  # fmt: skip


def _rejection(said: str) -> type[ModelFailure]:
    """A 400 without a code: the length of the prompt and an empty account are told in words only."""
    if _TOO_LONG_LOOSE.search(said):
        return ContextOverflow
    if _NO_MONEY.search(said):
        return SpendLimitReached
    return SchemaTooComplex if _TOO_COMPLEX.search(said) else RequestRejected


def _lengths(said: str) -> dict[str, Any] | None:
    """How long the prompt is and may be, if the text tells."""
    for pattern in _TOO_LONG:
        if found := pattern.search(said):
            return {"tokens": int(found["tokens"]), "tokens_max": int(found["limit"])}
    return None


def _said(error: Exception) -> str:
    """The service's own words; what the SDKs make of them differs, and may repeat the whole body."""
    body = getattr(error, "body", None)
    written = cast(Mapping[str, Any], body).get("message") if isinstance(body, Mapping) else None
    return _string(getattr(error, "api_message", None)) or _string(written) or str(error)


def _of_transport(error: Exception, facts: dict[str, Any], *, in_stream: bool) -> ModelFailure | None:
    """No answer, or half of one: the exception's module says that the connection is to blame."""
    chain = list(_chain(error))
    names = _names_of_chain(error)
    module, own = type(error).__module__.partition(".")[0], _names(error)
    # By name: the vendors' packages have one maker, and so the same errors.
    if "CredentialsError" in own:
        return AuthenticationFailed(f"no usable API key was found: {error}", sent=False, billed=False, **facts)
    if "APIResponseValidationError" in own:
        return _unavailable("the answer is not what the API promises", error, facts, sent=True)
    if module not in _TRANSPORTS and "APIConnectionError" not in own:
        return None
    if names & _BAD_URL:
        return RequestRejected(
            f"the endpoint's address cannot be used: {_innermost(chain)}. Correct base_url.",
            sent=False, billed=False, **facts,
        )  # fmt: skip
    sent = in_stream or bool(names & _SENT) or not (names & _NOT_SENT or _plain_connect_error(chain))
    timed_out = _timed_out(names)
    if in_stream:
        what = "the answer stalled" if timed_out else "the connection dropped in the middle of the answer"
    elif sent:
        what = "no answer in time" if timed_out else "the connection dropped before the answer"
    else:
        what = "no connection to the model endpoint"
    return _unavailable(what, _innermost(chain), facts, sent=sent)


def _of_builtin(error: Exception, facts: dict[str, Any], *, in_stream: bool) -> ModelFailure | None:
    """Python's own exceptions, as the vendor's package lets them through."""
    names, said = _names(error), str(error)
    if "JSONDecodeError" in names or isinstance(error, UnicodeDecodeError):
        return _unavailable("the answer is not JSON", error, facts, sent=True)
    if said.startswith("Unable to parse tool parameter JSON") or type(error).__module__.startswith("pydantic"):
        return MalformedOutput(f"the model's answer does not decode: {error}", sent=True, billed=True, **facts)
    if isinstance(error, OSError):  # Refused, reset, TLS, name resolution, TimeoutError.
        return _unavailable("the connection failed", error, facts, sent=in_stream or not names & _NOT_SENT)
    if isinstance(error, AssertionError):  # The SDK's own stream helper, when a gateway strips the event names.
        return _unavailable("the stream is not what the API promises", error, facts, sent=True)
    if any(words in said for words in _NO_KEY):
        return AuthenticationFailed(
            "no API key: pass api_key= or set the environment variable of the vendor's package, such as "
            "ANTHROPIC_API_KEY or OPENAI_API_KEY; nothing was sent",
            sent=False, billed=False, **facts,
        )  # fmt: skip
    if isinstance(error, TypeError) or said.startswith("Streaming is required"):
        return RequestRejected(f"the request cannot be sent: {error}", sent=False, billed=False, **facts)
    return None


class StreamError(Exception):
    """An error within a stream, shaped like the SDKs' status errors, so that `classify` treats both alike."""

    def __init__(self, error: Mapping[str, Any], response: object, request_id: str | None) -> None:
        super().__init__(str(error.get("message") or error.get("type") or "error event without a message"))
        details, code = error.get("details"), error.get("code")
        self.response = response
        self.status_code = 200
        self.request_id = request_id
        self.type = error.get("type")
        self.error_code = cast(Mapping[str, Any], details).get("error_code") if isinstance(details, Mapping) else None
        self.code = None if code is None else str(code)


def _unavailable(what: str, error: BaseException, facts: dict[str, Any], *, sent: bool) -> EndpointUnavailable:
    said = " ".join(str(error).split())  # Transports write several lines.
    detail = f"{type(error).__name__}: {said}" if said else type(error).__name__
    # Whoever was sent a request may have finished it: the cost stays reserved until somebody knows better.
    return EndpointUnavailable(f"{what} ({detail})", sent=sent, billed=sent, **facts)


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return how many seconds the service asks to wait, from `retry-after-ms` or `retry-after` (seconds or a date)."""
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _seconds(value)
    if seconds is not None or value is None:
        return seconds
    until = _timestamp(value)
    since = _timestamp(headers.get("date", ""))  # The service's own clock: ours may be off.
    if since is None:
        since = now
    return None if until is None or since is None else max(0.0, until - since)


def _seconds(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _timestamp(value: str) -> float | None:
    try:
        from email.utils import parsedate_to_datetime

        parsed = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _names(error: BaseException) -> frozenset[str]:
    return frozenset(cls.__name__ for cls in type(error).__mro__)


def _names_of_chain(error: BaseException) -> frozenset[str]:
    return frozenset[str]().union(*map(_names, _chain(error)))


def _timed_out(names: frozenset[str]) -> bool:
    # One bridge from aiohttp calls a server that hung up a timeout.
    return "ServerDisconnectedError" not in names and bool(
        names & {"TimeoutException", "APITimeoutError", "TimeoutError"}
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """*error* and what caused it, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _innermost(chain: list[BaseException]) -> BaseException:
    """The exception that says most: the deepest one with a text of its own."""
    return next((one for one in reversed(chain) if str(one)), chain[-1])


def _plain_connect_error(chain: list[BaseException]) -> bool:
    names = {type(one).__name__ for one in chain}
    return "ConnectError" in names and not any(type(one).__module__.startswith("aiohttp") for one in chain)


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
