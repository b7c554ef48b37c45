"""I/O adapters: one third-party library each, its exceptions mapped at this door."""
