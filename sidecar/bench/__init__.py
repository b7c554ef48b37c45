"""`sidecar bench`: open-loop load against the daemon, and figures that may be compared. The daemon never imports it.

Reading order: `flags`, `plan` and `load` (what is asked for), `arrivals` (when each call begins), `histogram` and
`recorder` (what one bot saw), `job` and `bot` with `by_asyncio`, `by_threads`, `by_wire` (the process that makes the
calls), `rig` and `processes` (what is started, and what it costs), `run` (one repetition), `result` (what is kept),
`picture` (for a terminal), `compare` (two results).
"""
