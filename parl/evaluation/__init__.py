"""Evaluation: held-out metrics, statistics, rescoring, ablations."""
