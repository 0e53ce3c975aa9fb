"""Coding: repair repositories; whatever agents write runs in a sandbox."""
