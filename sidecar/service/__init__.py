"""Tasks: every loop of the daemon lives here."""
