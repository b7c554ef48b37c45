"""Pure codecs, one file a dialect; `base` has the events they all turn into."""

from __future__ import annotations

from typing import Final

from sidecar.dialects.chat import CHAT
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.messages import MESSAGES
from sidecar.dialects.responses import RESPONSES

#: Every dialect by its name in the configuration.
DIALECTS: Final[dict[str, Dialect]] = {dialect.name: dialect for dialect in (RESPONSES, CHAT, MESSAGES)}
