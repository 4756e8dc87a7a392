"""How long the fuzz tests run: briefly among the tests, for long under `make fuzz`."""

from hypothesis import HealthCheck, settings

# No deadline per example: the machine is shared, and a slow example is not a wrong one.
settings.register_profile("brief", max_examples=200, deadline=None)
settings.register_profile(
    "fuzz", max_examples=50_000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("brief")
