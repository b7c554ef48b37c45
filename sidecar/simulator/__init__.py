"""The relay that misbehaves on demand: `sidecar sim`. Imports dialect facts; the daemon never imports it."""
