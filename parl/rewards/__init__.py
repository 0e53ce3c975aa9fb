"""Rewards: terms, modifiers, the scorer, credit."""
