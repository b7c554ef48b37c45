"""THE classifier: what an attempt's end means, decided once, for breaker, retry, metrics and the bot alike.

Connections and codecs raise facts (`errors.UpstreamFault`); `classify` judges them by the one table `RULES`. What no
fault of an upstream brought about stands in `core.outcome.OWN`. docs/outcomes.md prints both. Source of the idea:
linkerd2-proxy's classify; of the rows: what the services document of their codes.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from sidecar.core.outcome import Kind, Outcome, Retry
from sidecar.core.upstream_words import body_words, key, number
from sidecar.dialects.facts import NO_SUCH_PATH
from sidecar.dialects.retry_after import retry_after_of, seconds, should_retry
from sidecar.errors import (
    ConnectFailed,
    ConnectionLost,
    MalformedFrame,
    UpgradeRefused,
    UpstreamError,
    UpstreamFault,
)


class Rule(Struct, frozen=True, kw_only=True):
    """One row of the table: what is seen, and what it means.

    `codes` are the upstream's codes and types in snake case, `generic` types that say less than a status does,
    `statuses` HTTP statuses, `closes` WebSocket close codes, `phrases` parts of a message (lower case), looked at
    only when code and status leave no more than "refused" or "throttled". `only_call`: it is about the call itself,
    thus cannot be meant when an upgrade is refused. `way`, `nobody`: see `Outcome.by_way`, `.serves_nobody`.
    """

    seen: str
    kind: Kind
    code: str
    retry: Retry
    counted: bool = False
    credential: bool = False
    overload: bool = False
    throttles: bool = False
    way: bool = False
    nobody: bool = False
    retryable: bool = False
    retire: bool = False
    only_call: bool = False
    codes: tuple[str, ...] = ()
    generic: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    closes: tuple[int, ...] = ()
    phrases: tuple[str, ...] = ()


CONNECT = Rule(
    seen="no connection (name, TCP, proxy, TLS, upgrade, or the cap of that step)",
    kind=Kind.FAILURE, code="no_connection", retry="backoff", counted=True, retryable=True, way=True, retire=True,
)  # fmt: skip
CREDENTIAL = Rule(
    seen="our credential cannot be read",
    kind=Kind.REJECTED, code="upstream_auth", retry="next_target", credential=True, retire=True,
)  # fmt: skip
WRONG_DOOR = Rule(
    # An upgrade carries no call: whatever is wrong, it is not the call, so another target may well answer.
    # Over HTTP, who says "not found" in no dialect's words does not know the path, whatever was asked.
    seen="upgrade refused with any other status (redirects are not followed), or a path that nobody serves",
    kind=Kind.FAILURE, code="upstream_refused", retry="next_target", counted=True, way=True, retire=True,
    codes=(NO_SUCH_PATH,),
)  # fmt: skip
AUTH = Rule(
    seen="credential refused",
    kind=Kind.REJECTED, code="upstream_auth", retry="next_target", credential=True, retire=True,
    statuses=(401, 403), closes=(1008, 3000, 3003),
    codes=("invalid_api_key", "incorrect_api_key", "authentication_error", "auth_error", "invalid_authentication",
           "unauthorized", "permission_denied", "permission_error", "forbidden", "account_deactivated",
           "token_expired", "expired_token", "invalid_token", "token_not_found_in_db", "expired_key"),
)  # fmt: skip
QUOTA = Rule(
    seen="quota or credit used up",
    kind=Kind.REJECTED, code="insufficient_quota", retry="next_target", nobody=True,
    statuses=(402,),
    codes=("insufficient_quota", "quota_exceeded", "billing_hard_limit_reached", "billing_not_active",
           "payment_required", "insufficient_credits", "insufficient_balance", "credit_exhausted",
           "credits_exhausted", "out_of_credits", "budget_exceeded", "billing_error"),
    phrases=("exceeded your current quota", "insufficient credit", "insufficient balance", "credit balance",
             "specified api usage limits"),
)  # fmt: skip
THROTTLED = Rule(
    seen="rate limited",
    kind=Kind.THROTTLED, code="upstream_rate_limited", retry="backoff", retryable=True, overload=True, throttles=True,
    statuses=(429,),
    codes=("rate_limit_exceeded", "rate_limit_error", "rate_limit_reached", "too_many_requests", "throttling_error",
           "requests", "tokens"),
)  # fmt: skip
TOO_LARGE = Rule(
    # Waiting does not help; another target's credential may have the rate for it.
    seen="the call is larger than what the credential may ask in a minute",
    kind=Kind.REJECTED, code="upstream_refused", retry="next_target", only_call=True,
    phrases=("request too large",),
)  # fmt: skip
TRY_LATER = Rule(
    seen="try again later",
    kind=Kind.THROTTLED, code="upstream_error", retry="backoff", counted=True, retryable=True, retire=True,
    overload=True,
    closes=(1013,),
)  # fmt: skip
MODEL = Rule(
    # It is the target that is wrong, not the call: the next target names another model.
    seen="no such model",
    kind=Kind.REJECTED, code="model_not_found", retry="next_target", nobody=True,
    codes=("model_not_found", "model_not_available", "unknown_model", "invalid_model", "deployment_not_found",
           "model_decommissioned"),
    phrases=("the model `", "model not exist", "invalid model name"),
)  # fmt: skip
CONTEXT = Rule(
    seen="the prompt is too long for the model",
    kind=Kind.REJECTED, code="context_length_exceeded", retry="never", only_call=True,
    codes=("context_length_exceeded", "context_window_exceeded", "context_window_exceeded_error", "prompt_too_long",
           "exceed_context_size_error"),
    phrases=("context length", "context window", "contextwindow", "context limit", "context size",
             "prompt is too long"),
)  # fmt: skip
FILTER = Rule(
    seen="content filter, refusal",
    kind=Kind.REJECTED, code="content_filter", retry="never", only_call=True,
    codes=("content_filter", "content_policy_violation", "content_policy_violation_error", "moderation_blocked",
           "responsible_ai_policy_violation", "invalid_prompt", "refusal", "safety"),
    phrases=("content management policy", "contentpolicyviolation", "content filtering policy"),
)  # fmt: skip
EXPIRED = Rule(
    seen="the connection's time is over, or its server goes away in good order; or the request was not looked at",
    kind=Kind.IGNORED, code="upstream_lost", retry="now", retryable=True, retire=True,
    codes=("websocket_connection_limit_reached", "connection_expired"), closes=(1001, 1012),
)  # fmt: skip
SLOTS = Rule(
    # We and the upstream disagree about what runs on this connection: another one has no such history.
    seen="the connection is taken, by the upstream's count",
    kind=Kind.IGNORED, code="upstream_error", retry="now", retryable=True, retire=True,
    codes=("response_already_in_flight", "concurrent_request", "websocket_stream_limit_reached", "invalid_stream_id"),
)  # fmt: skip
REFUSED = Rule(
    seen="refused for what it asks (any other 4xx)",
    kind=Kind.REJECTED, code="upstream_refused", retry="never", only_call=True,
    statuses=(400, 404, 413, 422), closes=(1009,),
    codes=("previous_response_not_found", "unsupported_parameter", "unknown_parameter", "invalid_value",
           "unsupported_value", "missing_required_parameter", "request_too_large"),
    generic=("invalid_request_error", "bad_request", "bad_request_error", "invalid_request", "not_found_error",
             "not_found", "unprocessable_entity_error"),
)  # fmt: skip
OVERLOADED = Rule(
    seen="the upstream has too much to do",
    kind=Kind.FAILURE, code="upstream_error", retry="backoff", counted=True, retryable=True, overload=True,
    statuses=(498, 503, 529),
    codes=("overloaded_error", "overloaded", "engine_overloaded", "service_unavailable", "unavailable_error",
           "no_capacity", "capacity_exceeded", "slow_down"),
)  # fmt: skip
FAILED = Rule(
    seen="the upstream's own error (any other 5xx, and what nobody has heard of)",
    kind=Kind.FAILURE, code="upstream_error", retry="backoff", counted=True, retryable=True,
    statuses=(408, 425, 500, 502, 504), closes=(1011, 1014),
    codes=("bad_gateway", "gateway_timeout"),
    generic=("server_error", "internal_error", "internal_server_error", "api_error", "timeout", "timeout_error"),
)  # fmt: skip
LOST = Rule(
    seen="cut: EOF, reset, silence, or closed without an end of the answer",
    kind=Kind.FAILURE, code="upstream_lost", retry="backoff", counted=True, retryable=True, way=True, retire=True,
    closes=(1000, 1002, 1003, 1005, 1006, 1007, 1010, 1015),
)  # fmt: skip
MALFORMED = Rule(
    seen="malformed frame",
    kind=Kind.FAILURE, code="upstream_lost", retry="backoff", counted=True, retryable=True, way=True, retire=True,
)  # fmt: skip
OURS = Rule(
    seen="we closed the connection ourselves",
    kind=Kind.IGNORED, code="upstream_lost", retry="now", retryable=True, retire=True,
)  # fmt: skip

#: The table. Its order is that of printing, and in which phrases are looked for; no key stands in two rows (a test).
RULES: Final = (
    CONNECT, CREDENTIAL, WRONG_DOOR, AUTH, QUOTA, THROTTLED, TOO_LARGE, TRY_LATER, MODEL, CONTEXT, FILTER, EXPIRED,
    SLOTS, REFUSED, OVERLOADED, FAILED, LOST, MALFORMED, OURS,
)  # fmt: skip

_BY_CODE: Final = {code: rule for rule in RULES for code in rule.codes}
_BY_GENERIC: Final = {code: rule for rule in RULES for code in rule.generic}
_BY_STATUS: Final = {status: rule for rule in RULES for status in rule.statuses}
_BY_CLOSE: Final = {close: rule for rule in RULES for close in rule.closes}
_BY_PHRASE: Final = tuple((phrase, rule) for rule in RULES for phrase in rule.phrases)


def classify(fault: UpstreamFault) -> Outcome:
    """Judge a fault. Total: every `UpstreamFault` has an outcome, the unknown ones as `FAILED`."""
    if isinstance(fault, UpstreamError):
        rule = _rule_of_error(fault)
        outcome = _outcome(
            rule,
            fault.message or rule.seen,
            retry_after=seconds(fault.retry_after),
            status=fault.status if fault.status is not None else number(fault.code),
            code=fault.code or fault.type,
        )
        return outcome if fault.should_retry is not False else _not_again(outcome)
    if isinstance(fault, ConnectionLost):
        return _outcome(_rule_of_close(fault), str(fault), retire=True)
    if isinstance(fault, ConnectFailed):
        if fault.stage == "credential":
            # Where it lies is the operator's business: the log has it, a bot is told no path. A command that ran into
            # its cap is a slow machine, not a wrong secret.
            return _outcome(CONNECT if fault.timed_out else CREDENTIAL, "the upstream's credential cannot be read")
        return _outcome(CONNECT, str(fault))
    if isinstance(fault, UpgradeRefused):
        return _classify_upgrade(fault)
    if isinstance(fault, MalformedFrame):
        return _outcome(MALFORMED, str(fault))
    return _outcome(FAILED, str(fault))


def is_aged(fault: UpstreamFault) -> bool:
    """The connection's time is over, by its upstream's own word (`EXPIRED`, by a code): not an outage's beginning."""
    if not isinstance(fault, UpstreamError):
        return False
    return _BY_CODE.get(key(fault.code)) is EXPIRED or _BY_CODE.get(key(fault.type)) is EXPIRED


def _outcome(
    rule: Rule,
    message: str,
    *,
    retry_after: float | None = None,
    status: int | None = None,
    code: str | None = None,
    retire: bool = False,
) -> Outcome:
    return Outcome(
        kind=rule.kind,
        code=rule.code,
        message=message,
        retry=rule.retry,
        retry_after=retry_after,
        counts_against_breaker=rule.counted,
        credential_refused=rule.credential,
        # A gateway may name the cause of its 503 ("bad_gateway"): it still is one.
        overload=rule.overload or (rule is FAILED and status in OVERLOADED.statuses),
        throttles=rule.throttles,
        serves_nobody=rule.nobody,
        by_way=rule.way,
        retryable=rule.retryable,
        upstream_status=status,
        upstream_code=code[:128] if code else None,
        retire_connection=rule.retire or retire,
    )


def _rule_of_error(fault: UpstreamError) -> Rule:
    code, type_ = key(fault.code), key(fault.type)
    rule = _BY_CODE.get(code) or _BY_CODE.get(type_)
    # Some gateways put the HTTP status into `code`, as a string (LiteLLM: "401").
    rule = rule or _rule_of_status(fault.status) or _rule_of_status(number(fault.code))
    rule = rule or _BY_GENERIC.get(code) or _BY_GENERIC.get(type_) or FAILED
    if rule is REFUSED or rule is THROTTLED:
        spoken = _by_phrase(fault.message)
        # Whatever a 429 says of a model, it knows it.
        rule = spoken if spoken and not (spoken is MODEL and rule is THROTTLED) else rule
    return rule


def _rule_of_status(status: int | None) -> Rule | None:
    if status is None:
        return None
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return {3: WRONG_DOOR, 4: REFUSED, 5: FAILED}.get(status // 100)


def _rule_of_close(fault: ConnectionLost) -> Rule:
    if fault.how == "local":
        return OURS
    if fault.how in ("idle", "unprocessed"):
        return EXPIRED
    if 4400 <= fault.close_code <= 4599:  # a wide-spread habit: 4000 + HTTP status (Vercel: 4402)
        return _rule_of_status(fault.close_code - 4000) or LOST
    return _BY_CLOSE.get(fault.close_code, LOST)


def _classify_upgrade(fault: UpgradeRefused) -> Outcome:
    code, message = body_words(fault.body)
    rule = _BY_CODE.get(key(code)) or _rule_of_status(fault.status) or WRONG_DOOR
    if rule is THROTTLED:
        rule = _by_phrase(message) or rule
    if rule.only_call:
        rule = WRONG_DOOR
    outcome = _outcome(
        rule,
        str(fault),
        retry_after=retry_after_of(fault.headers),
        status=fault.status,
        code=code,
        retire=True,
    )
    return outcome if should_retry(fault.headers) is not False else _not_again(outcome)


#: What is refused to everybody, and statuses that speak of the path, whatever was asked.
_OF_ALL: Final = (AUTH.code, QUOTA.code, MODEL.code)
_OF_THE_PATH: Final = (404, 405)


def told_of_upstream(fault: UpstreamFault, outcome: Outcome) -> str | None:
    """What operators and every bot's report are told of a request that failed; None where that is about the call alone.

    In our words: the upstream's may hold a piece of somebody's prompt.
    """
    of_all = outcome.counts_against_breaker or outcome.throttles or outcome.code in _OF_ALL
    if not of_all and outcome.upstream_status not in _OF_THE_PATH:
        return None
    if isinstance(fault, UpstreamError) and outcome.upstream_status is not None:
        return f"a request failed: {outcome.code}, status {outcome.upstream_status}"
    return fault.loggable


def _not_again(outcome: Outcome) -> Outcome:
    """For an upstream that says "do not retry": it is not asked again for this call."""
    if outcome.retry in {"now", "backoff"}:
        return msgspec.structs.replace(outcome, retry="next_target", retryable=False)
    return outcome


def _by_phrase(message: str) -> Rule | None:
    message = message.lower()
    return next((rule for phrase, rule in _BY_PHRASE if phrase in message), None)
