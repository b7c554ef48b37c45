"""One request, as the upstream's side sees it, and its answer, message by message.

What is said in each dialect is `words`' matter; how it travels (a WebSocket's frame, an event of an event stream) its
session's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

if TYPE_CHECKING:
    from tests.simulation.exchanges import Exchange
    from tests.simulation.session import Session


class Request:
    """One request, from the client's writing it to its end, as the upstream's side sees it.

    Attributes:
        number: of all requests of the world; every piece of its text begins with it.
        tag: the call's, from its prompt.
        written_at, arrived_at: when the client wrote it; when it was here.
        pieces: the text sent before its end.
        finished: a proper end was sent.
        ended_at: its end, of whatever kind, has arrived at the client.
        how: what kind of end: "done", "failed", "ignored", "auth", "throttled", "rejected", "cut", or "" so far.
        content_at: its first content arrived at the client.
        told: what the head of its answer, which has arrived at the client, says of its end.
        over: its script has said all that it says.
        reset_at: when the client wrote that it wants no more of it.
        exchange: over HTTP: how its answer travels.
    """

    __slots__ = (
        "_words", "arrived_at", "body", "content_at", "ended_at", "exchange", "finished", "how", "junk", "model",
        "name", "number", "over", "pieces", "reset_at", "session", "tag", "told", "trial", "written_at",
    )  # fmt: skip

    def __init__(self, session: Session, number: int, body: dict[str, Any], tag: str, now: float) -> None:
        self.session, self.number, self.body, self.tag, self.written_at = session, number, body, tag, now
        self._words = session.service.words
        self.model: str = body["model"]
        self.arrived_at: float | None = None
        self.pieces: list[str] = []
        self.finished = self.junk = False
        self.ended_at: float | None = None
        self.content_at: float | None = None
        self.how = self.told = ""
        self.over = False
        self.reset_at: float | None = None
        self.exchange: Exchange | None = None
        self.name: str = body.get("id", f"n{number}")

    def __repr__(self) -> str:
        return f"<Request {self.number} of {self.tag} at {self.session} {self.how or 'open'}>"

    # ------------------------------------------------------------------ what arrived at the client

    def _content_came(self) -> None:
        # What comes after a Close, or to an end that has closed, is nobody's.
        if (
            self.content_at is None
            and self.ended_at is None
            and self.reset_at is None
            and self.session.link.closed_at is None
        ):
            self.content_at = trio.current_time()

    def came(self, how: str) -> None:
        """An end of this kind."""
        if self.ended_at is None:
            self.ended_at = trio.current_time()
            self.how = how

    # ------------------------------------------------------------------ frames

    def delta(self, text: str = "") -> bytes:
        """A piece of content, of this request and no other."""
        piece = text or f"{self.number}:{len(self.pieces)} "
        if not self.finished:
            self.pieces.append(piece)
        return self.frame(self._words.delta(self, piece))

    def created(self) -> bytes:
        """The answer begins; no content yet."""
        return self.frame(self._words.created(self))

    def finish(self, reason: str = "stop") -> bytes:
        """The reason why it stopped; in `responses` the terminal with its usage."""
        self.finished = True
        return self.frame(self._words.finish(self, reason))

    def after(self) -> bytes:
        """What comes after that: the usage of `chat`, the end of `messages`; nothing in `responses`."""
        return self.frame(self._words.after(self)) if self._words.afterwards else b""

    def error(self, status: int | None, code: str | None = None, retry_after: float | None = None) -> bytes:
        """The upstream's own error."""
        said = f'"error":{{"code":{msgspec.json.encode(code).decode()},"message":"simulated {status} {code}"}}'
        if status is not None:
            said += f',"status":{status}'
        if retry_after is not None:
            said += f',"headers":{{"retry-after":"{retry_after}"}}'
        return self.frame(self._words.error(self, said))

    def frame(self, fields: str) -> bytes:
        """One text message of this request's stream."""
        stream = self.body.get("stream_id")
        if stream is not None:
            fields += f',"stream_id":"{stream}"'
        return self.session.framed(self, b"{" + fields.encode() + b"}")

    # ------------------------------------------------------------------ sending

    def send(self, *frames: bytes) -> None:
        """Frames without content or end, in one segment."""
        self.session.put(self, b"".join(frames))

    def content(self, *frames: bytes) -> None:
        """Frames with content."""
        self.session.put(self, b"".join(frames), self._content_came if self.content_at is None else None)

    def ends(self, how: str, *frames: bytes) -> None:
        """Frames of which the last is an end."""
        self.over = True
        if how in ("ignored", "auth"):
            self.session.told_all(self, how)
        self.session.put(self, b"".join(frames), partial(self.came, how))

    def fails(self, how: str, status: int | None, code: str | None = None, retry_after: float | None = None) -> None:
        """Ends by the upstream's own error: in a frame, or as the status of the whole answer."""
        self.over = True
        if not self.session.refuses(self, how, status, code, retry_after):
            self.ends(how, self.error(status, code, retry_after))

    def done(self, *before: bytes, whole: bool = True) -> None:
        """A proper end, after some frames. `whole`: with all that may come after it."""
        self.over = True
        last = [self.finish()]
        if whole:
            last.append(self.after())
        mark = self.all_came if before else partial(self.came, "done")
        self.session.put(self, b"".join((*before, *last)), mark)

    def all_came(self) -> None:
        """Content and a proper end, at once."""
        self._content_came()
        self.came("done")
