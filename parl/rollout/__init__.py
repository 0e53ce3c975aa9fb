"""Rollouts: one agent, one swarm, many episodes at once."""
