"""Checks of an environment against its contract, as `parl envs check` runs them."""
