"""A dialect as the rest of the daemon knows it: a name, the options it can carry, and codecs."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.dialects import options as portable
from sidecar.dialects.base import Codec
from sidecar.wire import Options


class Dialect:
    """One dialect.

    Args:
        name: as in the configuration and in `options.TABLE`.
        make_codec: slots -> a codec for one new connection.
    """

    def __init__(self, name: str, make_codec: Callable[[int], Codec]) -> None:
        self.name = name
        self._make_codec = make_codec

    def __repr__(self) -> str:
        return f"<Dialect {self.name}>"

    def unsupported(self, options: Options) -> list[str]:
        """The names of the options given that this dialect cannot carry."""
        return portable.unsupported(options, self.name)

    def codec(self, *, slots: int = 1) -> Codec:
        """A codec for one new connection of `slots` calls at once."""
        return self._make_codec(slots)
