"""Paired ablations: variants, runs, analysis."""
