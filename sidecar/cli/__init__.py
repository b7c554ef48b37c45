"""One file a command; nothing but argv, printing and exit codes."""
