"""The version of the distribution; its own file so that the daemon needs nothing of the package's face."""

__version__ = "0.1.0"
