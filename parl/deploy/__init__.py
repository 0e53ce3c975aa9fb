"""Serving and exporting what a run has trained."""
