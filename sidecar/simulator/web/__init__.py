"""The relay over HTTPS: the same answers and mishaps as over WebSockets, as server-sent events or as JSON.

Reading order: `sse` (framing), `heads` (response heads and errors), `pipe` (where one answer goes), `talk` (one
connection), `reply` (one answer), `whole` (one that is not streamed), `fates` and `doors` (what may go wrong),
`desk` (from a request to its answer), `http1` and `http2` (the connection as each version has it).
"""
