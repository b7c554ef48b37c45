"""The one classifier: every fault has one meaning, and the table of the documentation is its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core import classifier
from sidecar.core import outcome as o
from sidecar.core.classifier import RULES, THROTTLED, Rule, classify
from sidecar.core.outcome import Kind
from sidecar.core.upstream_words import key
from sidecar.dialects.retry_after import MAX_RETRY_AFTER, retry_after_of, seconds
from sidecar.errors import (
    CODES,
    ConnectFailed,
    ConnectionLost,
    MalformedFrame,
    UpgradeRefused,
    UpstreamError,
    UpstreamFault,
)
from tests.core import generate_outcomes


def error(code=None, *, message="m", **fields):
    """The outcome of an error in the upstream's own words."""
    return classify(UpstreamError(message, code=code, **fields))


def test_every_code_is_a_code_of_the_wire():
    """A terminal never carries a code that `proto/wire.md` does not list."""
    for rule in RULES:
        assert rule.code in CODES, rule
    for constant in (o.FIRST_DELTA_TIMEOUT, o.IDLE_TIMEOUT, o.DEADLINE, o.CANCELLED):
        assert constant.code in CODES


def test_no_key_stands_in_two_rows():
    """One upstream code, status or close code has one meaning."""
    for field in ("codes", "generic", "statuses", "closes", "phrases"):
        keys = [key for rule in RULES for key in getattr(rule, field)]
        assert len(keys) == len(set(keys)), field
    codes = {code for rule in RULES for code in rule.codes}
    assert not codes & {code for rule in RULES for code in rule.generic}
    assert all(key(code) == code for code in codes), "keys are spelled as they are looked up"


def test_rejected_ignored_and_throttled_by_429_are_not_counted():
    """The breaker counts what the upstream did wrong, never what the call, the credential or the bot did."""
    for rule in RULES:
        if rule.kind in {Kind.REJECTED, Kind.IGNORED} or rule is THROTTLED:
            assert not rule.counted, rule
        else:
            assert rule.counted, rule


@pytest.mark.parametrize("stage", ["resolve", "tcp", "proxy", "tls", "upgrade"])
@pytest.mark.parametrize("timed_out", [False, True])
def test_a_failed_connect_counts_and_may_be_tried_again(stage, timed_out):
    """Whatever step a connect failed at: a failure of the upstream, retriable, on the same one after a backoff."""
    said = classify(ConnectFailed(stage, "refused", timed_out=timed_out))
    assert (said.kind, said.code, said.retry) == (Kind.FAILURE, "no_connection", "backoff")
    assert said.counts_against_breaker
    assert not said.credential_refused


def test_an_unreadable_credential_is_not_the_upstreams_fault():
    """A secret that cannot be read goes the way of a refused one; a slow credential command is an ordinary failure."""
    assert classify(ConnectFailed("credential", "no such file")).credential_refused
    assert not classify(ConnectFailed("credential", "cap", timed_out=True)).credential_refused


@pytest.mark.parametrize(
    ("code", "kind", "wire", "retry", "counted"),
    [
        (1000, Kind.FAILURE, "upstream_lost", "backoff", True),
        (1001, Kind.IGNORED, "upstream_lost", "now", False),
        (1002, Kind.FAILURE, "upstream_lost", "backoff", True),
        (1005, Kind.FAILURE, "upstream_lost", "backoff", True),
        (1006, Kind.FAILURE, "upstream_lost", "backoff", True),
        (1008, Kind.REJECTED, "upstream_auth", "next_target", False),
        (1009, Kind.REJECTED, "upstream_refused", "never", False),
        (1011, Kind.FAILURE, "upstream_error", "backoff", True),
        (1012, Kind.IGNORED, "upstream_lost", "now", False),
        (1013, Kind.THROTTLED, "upstream_error", "backoff", True),
        (1015, Kind.FAILURE, "upstream_lost", "backoff", True),
        (3000, Kind.REJECTED, "upstream_auth", "next_target", False),
        (4001, Kind.FAILURE, "upstream_lost", "backoff", True),
        (4401, Kind.REJECTED, "upstream_auth", "next_target", False),
        (4402, Kind.REJECTED, "insufficient_quota", "next_target", False),
        (4429, Kind.THROTTLED, "upstream_rate_limited", "backoff", False),
        (4503, Kind.FAILURE, "upstream_error", "backoff", True),
        (4999, Kind.FAILURE, "upstream_lost", "backoff", True),
        (0, Kind.FAILURE, "upstream_lost", "backoff", True),
    ],
)
def test_close_codes(code, kind, wire, retry, counted):
    """Every close code means what this table says of it, and the connection is always gone."""
    said = classify(ConnectionLost(code, how="close"))
    assert (said.kind, said.code, said.retry, said.counts_against_breaker) == (kind, wire, retry, counted)
    assert said.retire_connection


@pytest.mark.parametrize("how", ["eof", "reset", "silence"])
def test_a_cut_is_a_cut(how):
    """EOF, reset and a missing pong are the same to the call."""
    said = classify(ConnectionLost(how=how))
    assert (said.kind, said.code, said.retry) == (Kind.FAILURE, "upstream_lost", "backoff")


def test_our_own_close_blames_nobody():
    """A connection that we closed under a call: another one at once, nothing counted."""
    said = classify(ConnectionLost(1006, how="local"))
    assert (said.kind, said.retry, said.counts_against_breaker) == (Kind.IGNORED, "now", False)


def test_a_malformed_frame_retires_the_connection():
    """Bytes that cannot be trusted: the attempt is lost and the connection with it."""
    said = classify(MalformedFrame("not JSON"))
    assert (said.code, said.retry, said.retire_connection) == ("upstream_lost", "backoff", True)


@pytest.mark.parametrize(
    ("fields", "wire", "retry"),
    [
        ({"code": "rate_limit_exceeded"}, "upstream_rate_limited", "backoff"),
        ({"code": "rate_limit_exceeded", "status": 429}, "upstream_rate_limited", "backoff"),
        ({"type": "tokens", "status": 429}, "upstream_rate_limited", "backoff"),
        ({"status": 429}, "upstream_rate_limited", "backoff"),
        ({"code": "insufficient_quota", "status": 429}, "insufficient_quota", "next_target"),
        ({"type": "insufficient_quota", "status": 429}, "insufficient_quota", "next_target"),
        ({"status": 429, "message": "You exceeded your current quota, check"}, "insufficient_quota", "next_target"),
        ({"status": 402}, "insufficient_quota", "next_target"),
        ({"code": "context_length_exceeded", "status": 400}, "context_length_exceeded", "never"),
        ({"status": 400, "message": "This model's maximum context length is 8192"}, "context_length_exceeded", "never"),
        ({"code": "content_filter", "status": 400}, "content_filter", "never"),
        ({"code": "model_not_found", "status": 404}, "model_not_found", "next_target"),
        ({"code": "DeploymentNotFound", "status": 404}, "model_not_found", "next_target"),
        ({"status": 404}, "upstream_refused", "never"),
        ({"code": "invalid_api_key", "type": "invalid_request_error", "status": 401}, "upstream_auth", "next_target"),
        ({"code": "401", "type": "auth_error"}, "upstream_auth", "next_target"),
        ({"code": "401"}, "upstream_auth", "next_target"),
        ({"status": 403}, "upstream_auth", "next_target"),
        ({"code": "previous_response_not_found", "status": 400}, "upstream_refused", "never"),
        ({"code": "websocket_connection_limit_reached", "status": 400}, "upstream_lost", "now"),
        ({"code": "response_already_in_flight"}, "upstream_error", "now"),
        ({"code": "concurrent_request"}, "upstream_error", "now"),
        ({"code": "websocket_stream_limit_reached"}, "upstream_error", "now"),
        ({"code": "invalid_stream_id"}, "upstream_error", "now"),
        ({"code": "server_error"}, "upstream_error", "backoff"),
        ({"type": "server_error", "status": 500}, "upstream_error", "backoff"),
        ({"status": 529}, "upstream_error", "backoff"),
        ({"status": 599}, "upstream_error", "backoff"),
        ({"status": 418}, "upstream_refused", "never"),
        ({"type": "invalid_request_error"}, "upstream_refused", "never"),
        ({"type": "invalid_request_error", "status": 503}, "upstream_error", "backoff"),
        ({}, "upstream_error", "backoff"),
        ({"code": "", "type": ""}, "upstream_error", "backoff"),
        ({"status": 7}, "upstream_error", "backoff"),
        ({"code": "9" * 5000}, "upstream_error", "backoff"),
    ],
)
def test_errors_in_the_upstreams_own_words(fields, wire, retry):
    """Specific code or type, then status, then the generic type; the message only where those leave it open."""
    said = error(**fields)
    assert (said.code, said.retry) == (wire, retry)


def test_what_a_429_says_besides():
    """A quota that is used up, or a call larger than the rate, is no matter of waiting; a model it names, it knows."""
    for code in (None, "rate_limit_exceeded"):
        assert error(code, status=429, message="Request too large for m: Limit 6000").code == "upstream_refused"
        assert error(code, status=429, message="Request too large for m: Limit 6000").retry == "next_target"
        assert error(code, status=429, message="You exceeded your current quota").code == "insufficient_quota"
        assert error(code, status=429, message="Too much for the model `m`").code == "upstream_rate_limited"
    assert error(status=400, message="The model `m` does not exist").code == "model_not_found"


def test_codes_are_read_in_any_spelling():
    """Words are told apart by case and by signs; an acronym is one word."""
    assert key("DeploymentNotFound") == key("deployment-not-found") == "deployment_not_found"
    assert key("ResponsibleAIPolicyViolation") == "responsible_ai_policy_violation"
    assert key("RESOURCE_EXHAUSTED") == "resource_exhausted"
    assert key("APIError") == "api_error"
    assert key("") == key(None) == ""


def test_what_the_upstream_said_is_passed_on():
    """Status, code, message and wait of the upstream reach the bot's terminal."""
    said = error("rate_limit_exceeded", status=429, message="slow down", retry_after=2.5)
    assert said.retry_after == 2.5
    assert said.upstream_status == 429
    assert said.upstream_code == "rate_limit_exceeded"
    assert said.message == "slow down"
    assert said.retryable
    assert error("429").upstream_status == 429, "a status in `code` is one"
    assert error(None, type="server_error").upstream_code == "server_error"
    assert error(message="").message, "never an empty message"


def test_the_connection_limit_retires_the_connection_and_a_server_error_does_not():
    """An error frame ends a call; only some end the connection."""
    assert error("websocket_connection_limit_reached").retire_connection
    assert error("invalid_api_key").retire_connection
    assert not error("server_error").retire_connection


def refused(status, headers=None, body=b""):
    """The outcome of a refused upgrade."""
    return classify(UpgradeRefused(status, headers or {}, body))


@pytest.mark.parametrize(
    ("status", "body", "wire", "retry", "kind"),
    [
        (401, b"", "upstream_auth", "next_target", Kind.REJECTED),
        (403, b'{"detail":"no"}', "upstream_auth", "next_target", Kind.REJECTED),
        (402, b"", "insufficient_quota", "next_target", Kind.REJECTED),
        (429, b"", "upstream_rate_limited", "backoff", Kind.THROTTLED),
        (429, b'{"error":{"code":"insufficient_quota"}}', "insufficient_quota", "next_target", Kind.REJECTED),
        (
            429,
            b'{"error":{"message":"You exceeded your current quota"}}',
            "insufficient_quota",
            "next_target",
            Kind.REJECTED,
        ),
        (429, b'{"error":{"message":"slow down"}}', "upstream_rate_limited", "backoff", Kind.THROTTLED),
        (404, b'{"code":"model_not_found"}', "model_not_found", "next_target", Kind.REJECTED),
        (404, b"", "upstream_refused", "next_target", Kind.FAILURE),
        (400, b'{"error":{"code":"context_length_exceeded"}}', "upstream_refused", "next_target", Kind.FAILURE),
        (301, b"", "upstream_refused", "next_target", Kind.FAILURE),
        (200, b"", "upstream_refused", "next_target", Kind.FAILURE),
        (500, b"", "upstream_error", "backoff", Kind.FAILURE),
        (503, b"{", "upstream_error", "backoff", Kind.FAILURE),
        (503, b"[1]", "upstream_error", "backoff", Kind.FAILURE),
        (503, b'"x"', "upstream_error", "backoff", Kind.FAILURE),
        (503, b"\xff\xfe", "upstream_error", "backoff", Kind.FAILURE),
        (503, b'{"error":"text","message":7,"code":3}', "upstream_error", "backoff", Kind.FAILURE),
        (503, b"[" * 4096, "upstream_error", "backoff", Kind.FAILURE),
        (503, b'{"a":' * 2000, "upstream_error", "backoff", Kind.FAILURE),
    ],
)
def test_refused_upgrades(status, body, wire, retry, kind):
    """An upgrade carries no call: a refusal sends the call elsewhere, and never ends it as its own fault."""
    said = refused(status, body=body)
    assert (said.code, said.retry, said.kind) == (wire, retry, kind)
    assert said.upstream_status == status
    assert said.retire_connection


def test_x_should_retry_false_is_believed():
    """An upstream that says "do not retry" is not asked again for this call."""
    assert refused(503, {"x-should-retry": "False"}).retry == "next_target"
    assert not refused(503, {"x-should-retry": "false"}).retryable
    assert refused(503, {"x-should-retry": "true"}).retry == "backoff"
    assert refused(401, {"x-should-retry": "false"}).retry == "next_target"


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "9" * 5000}, MAX_RETRY_AFTER),
        ({"retry-after": "1e9"}, MAX_RETRY_AFTER),
        ({"retry-after": DATE}, None),
        ({"retry-after": DATE, "date": "Wed, 21 Oct 2015 07:27:30 GMT"}, 30.0),
        ({"retry-after": DATE, "date": "Wed, 21 Oct 2015 07:29:00 GMT"}, 0.0),
        ({"retry-after": DATE, "date": "garbage"}, None),
        ({"retry-after": "garbage", "date": DATE}, None),
        ({"retry-after": DATE, "date": "Wed, 21 Oct 2015 07:27:30"}, None),
        ({"retry-after": "Wed, 21 Oct 2035 07:28:00 GMT", "date": DATE}, MAX_RETRY_AFTER),
    ],
)
def test_retry_after(headers, wait):
    """Seconds, milliseconds, or an HTTP-date against the sender's own clock; what cannot be read says nothing."""
    assert retry_after_of(headers) == wait
    assert refused(429, headers).retry_after == wait


def test_seconds_takes_numbers_too():
    """A dialect's `retry_after` may be any number, even one too big for a float."""
    assert seconds(3) == 3.0
    assert seconds(10**400) is None
    assert seconds(float("nan")) is None


def test_a_deadline_is_counted_only_when_said():
    """The caller knows whether the attempt had waited long enough for the deadline to be the upstream's doing."""
    assert not o.deadline(counted=False).counts_against_breaker
    assert o.deadline(counted=True).counts_against_breaker
    assert o.deadline(counted=True).code == o.DEADLINE.code == "deadline_exceeded"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (UpstreamError("x", status=307), "a request failed: upstream_refused, status 307"),
        (UpstreamError("x", status=404), "a request failed: upstream_refused, status 404"),
        (UpstreamError("x", status=401), "a request failed: upstream_auth, status 401"),
        (UpstreamError("x", status=402), "a request failed: insufficient_quota, status 402"),
        (UpstreamError("x", status=429), "a request failed: upstream_rate_limited, status 429"),
        (UpstreamError("x", status=503), "a request failed: upstream_error, status 503"),
        (UpstreamError("x", code="model_not_found", status=400), "a request failed: model_not_found, status 400"),
        (UpstreamError("x", code="server_error"), "error frame: server_error"),
        (MalformedFrame("no JSON"), "malformed: no JSON"),
        (ConnectionLost(1011, "my prompt", how="close"), "connection lost (close, 1011)"),
        (UpstreamError("x", status=400), None),
        (UpstreamError("x", status=422), None),
        (UpstreamError("x", code="context_length_exceeded", status=400), None),
        (UpstreamError("x", code="content_filter", status=400), None),
        (UpstreamError("Request too large for m", status=429), None),
        (ConnectionLost(1000, "closed while idle", how="idle"), None),
    ],
)
def test_what_is_told_of_an_upstream_by_a_requests_end(fault, said):
    """Where it speaks of the upstream or the way there, in our words; of what is the call's own fault, nothing."""
    assert classifier.told_of_upstream(fault, classify(fault)) == said


def test_an_unheard_of_fault_is_a_failure():
    """The classifier is total."""

    class News(UpstreamFault):
        pass

    assert classify(News("?")).code == "upstream_error"


def test_the_documented_table_is_fresh():
    """The documentation's table holds every rule and every constant as they are now, in one line each."""
    table = generate_outcomes.outcome_table()
    lines = table.splitlines()
    assert len(lines) == 2 + len(RULES) + len(o.OWN)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    documented = generate_outcomes.DOCUMENT.read_text(encoding="utf-8")
    assert documented.endswith("\n\n" + table), f"stale; regenerate it: {generate_outcomes.COMMAND}"


# ---------------------------------------------------------------------- what resilience asks of the table


def closed(code):
    """A connection closed by its server with this code."""
    return classify(ConnectionLost(code, how="close"))


#: What was seen, and what it must mean while nothing is committed: may the call go on (and where), does it count.
EVENTS = [
    ("TCP refused", classify(ConnectFailed("tcp", "refused")), "backoff", True),
    ("TLS failed", classify(ConnectFailed("tls", "bad certificate")), "backoff", True),
    ("EOF", classify(ConnectionLost(how="eof")), "backoff", True),
    ("1006", closed(1006), "backoff", True),
    ("1001", closed(1001), "now", False),
    ("1012", closed(1012), "now", False),
    ("1008", closed(1008), "next_target", False),
    ("401 at the door", refused(401), "next_target", False),
    ("403 at the door", refused(403), "next_target", False),
    ("401 in a frame", error(status=401), "next_target", False),
    ("403 in a frame", error(status=403), "next_target", False),
    ("1009", closed(1009), "never", False),
    ("400", error(status=400), "never", False),
    ("404", error(status=404), "never", False),
    ("413", error(status=413), "never", False),
    ("422", error(status=422), "never", False),
    ("content filter", error("content_filter"), "never", False),
    ("context length", error("context_length_exceeded"), "never", False),
    ("1011", closed(1011), "backoff", True),
    *((f"{status} in a frame", error(status=status), "backoff", True) for status in (500, 502, 503, 504, 529)),
    *((f"{status} at the door", refused(status), "backoff", True) for status in (500, 502, 503, 504, 529)),
    ("1013", closed(1013), "backoff", True),
    ("429", error(status=429, retry_after=2.0), "backoff", False),
    ("429 at the door", refused(429, {"retry-after": "2"}), "backoff", False),
    ("402", error(status=402), "next_target", False),
    ("429 by quota", error("insufficient_quota", status=429), "next_target", False),
    ("429 by credit", error(status=429, message="insufficient credit"), "next_target", False),
    ("closed without an end of the answer", closed(1000), "backoff", True),
    ("malformed frame", classify(MalformedFrame("not JSON")), "backoff", True),
    ("idle timeout", o.IDLE_TIMEOUT, "backoff", True),
    ("first-delta timeout", o.FIRST_DELTA_TIMEOUT, "next_target", True),
    ("a bot's cancel", o.CANCELLED, "never", False),
    ("a deadline shorter than usual", o.deadline(counted=False), "never", False),
    ("a deadline after a long silence", o.deadline(counted=True), "never", True),
    ("answered", o.SUCCESS, "never", False),
]


@pytest.mark.parametrize(("said", "retry", "counted"), [row[1:] for row in EVENTS], ids=[row[0] for row in EVENTS])
def test_every_event_means_what_it_should(said, retry, counted):
    """The table of events: where the call may go on while nothing is committed, and whether it counts."""
    assert (said.retry, said.counts_against_breaker) == (retry, counted)


def test_who_tried_with_a_changed_credential_may_once_more():
    """401, 403 and 1008 say that it is the credential, so that the pool can look whether there is a newer one."""
    for said in (refused(401), refused(403), error(status=401), closed(1008), error("invalid_api_key")):
        assert said.credential_refused
    for _, said, _, counted in EVENTS:
        assert not (said.credential_refused and counted), "a bad key is no outage"


def test_only_a_429_paces_the_credential():
    """It speaks of who asks. 1013 and 503 speak of the server, the breaker's business, whatever they say of when."""
    for said in (error(status=429), refused(429), closed(4429), error("rate_limit_exceeded"), error(type="tokens")):
        assert said.throttles
        assert said.overload
        assert not said.counts_against_breaker
    for said in (
        closed(1013), error(status=503, retry_after=5.0), refused(503, {"retry-after": "5"}), error(status=529),
        error("insufficient_quota"), o.SUCCESS, o.CANCELLED,
    ):  # fmt: skip
        assert not said.throttles


def test_overload_is_said_by_status_code_or_close():
    """429, 503, 529, 1013 and the words for them ask for fewer calls at once; an ordinary error or a cut does not."""
    for said in (
        error(status=503), error(status=529), refused(503), refused(529), closed(1013), closed(4503), closed(4529),
        error("overloaded_error"), error("engine_overloaded"), error("503"), error("bad_gateway", status=503),
        error(type="server_error", status=503), error("slow_down"),
    ):  # fmt: skip
        assert said.overload
        assert said.retry == "backoff"
    for said in (
        error(status=500), error(status=502), error("bad_gateway", status=502), error(status=400), closed(1006),
        closed(1011), closed(1001), o.IDLE_TIMEOUT, o.FIRST_DELTA_TIMEOUT, o.CANCELLED, o.SUCCESS, o.DEADLINE_COUNTED,
        error("content_filter", status=503), classify(ConnectFailed("tcp", "refused")),
    ):  # fmt: skip
        assert not said.overload


def test_kinds_and_flags_agree():
    """In both tables: throttled is overload, what paces is throttled, what is ignored or rejected is none of them."""
    rows = [(rule.seen, rule.kind, rule.counted, rule.overload, rule.throttles, rule.retry) for rule in RULES]
    rows += [
        (seen, said.kind, said.counts_against_breaker, said.overload, said.throttles, said.retry)
        for seen, said in o.OWN
    ]
    for seen, kind, counted, overload, throttles, retry in rows:
        assert overload or kind is not Kind.THROTTLED, seen
        assert kind is Kind.THROTTLED or not throttles, seen
        assert counted == (kind is Kind.FAILURE) or kind is Kind.THROTTLED, seen
        if kind in {Kind.REJECTED, Kind.IGNORED, Kind.SUCCESS}:
            assert (counted, overload) == (False, False), seen
        if kind is Kind.REJECTED:
            assert retry in {"never", "next_target"}, seen


def test_a_hurry_of_the_bots_says_nothing_of_the_upstream():
    """A clock of ours that ran for less than its route's time: the same end for the call, and nothing counted."""
    for said in (o.FIRST_DELTA_TIMEOUT, o.DEADLINE_COUNTED, o.IDLE_TIMEOUT):
        hurried = o.by_impatience(said)
        assert hurried.kind is Kind.IGNORED
        assert not hurried.counts_against_breaker
    assert o.by_impatience(o.IDLE_TIMEOUT).retry == o.IDLE_TIMEOUT.retry
    assert o.by_impatience(o.IDLE_TIMEOUT).retire_connection
    for said in (o.SUCCESS, o.CANCELLED, o.DEADLINE, error(status=503)):
        assert o.by_impatience(said) is said


def test_every_outcome_of_the_file_is_printed():
    """No constant of the classifier, or of what it does not judge, is missing in its table."""
    constants = {id(value) for value in vars(o).values() if isinstance(value, o.Outcome)}
    assert constants == {id(said) for _, said in o.OWN}
    rules = {id(value) for value in vars(classifier).values() if isinstance(value, Rule)}
    assert rules == {id(rule) for rule in RULES}


texts = st.one_of(st.none(), st.text(max_size=80))


@given(st.text(max_size=600), texts, texts, st.one_of(st.none(), st.integers()), st.one_of(st.none(), st.floats()))
def test_no_error_frame_breaks_the_classifier(message, code, type_, status, retry_after):
    """Whatever an upstream says, there is an outcome with a code of the wire and a wait that can be waited."""
    said = classify(UpstreamError(message, code=code, type=type_, status=status, retry_after=retry_after))
    assert said.code in CODES
    assert said.retry_after is None or 0 <= said.retry_after <= MAX_RETRY_AFTER


@given(
    st.integers(),
    st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date", "x-should-retry"]), st.text(max_size=80)),
    st.binary(max_size=200),
)
def test_no_refused_upgrade_breaks_the_classifier(status, headers, body):
    """The same for upgrades."""
    said = refused(status, headers, body)
    assert said.retry != "never"
    assert said.retry_after is None or 0 <= said.retry_after <= MAX_RETRY_AFTER


@pytest.mark.parametrize("how", ["idle", "unprocessed"])
def test_what_an_upstream_never_began_is_nobodys_fault(how):
    """A connection closed before it took the request up: tried again at once, against no breaker."""
    outcome = classify(ConnectionLost(1006, how=how))
    assert (outcome.retry, outcome.counts_against_breaker) == ("now", False)


def test_a_connection_whose_time_is_over_says_so_by_a_code():
    """`is_aged`: by code or by type of an error, by nothing else."""
    assert classifier.is_aged(UpstreamError("old", code="websocket_connection_limit_reached"))
    assert classifier.is_aged(UpstreamError("old", type="websocket_connection_limit_reached"))
    assert not classifier.is_aged(UpstreamError("old", code="server_error"))
    assert not classifier.is_aged(ConnectionLost(1001, how="close"))
