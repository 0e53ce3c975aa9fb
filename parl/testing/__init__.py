"""The checks of environments behind `parl envs check`."""
