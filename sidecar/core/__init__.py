"""Pure policy: time and chance come in as arguments, decisions go out as values. No I/O, no clock, no logger."""
