"""How every test of this project runs."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Timings never decide a test, and a busy machine may hold a process for seconds: neither may Hypothesis' own.
settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")
