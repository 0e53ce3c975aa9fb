"""Coding: untrusted programs, and the sandbox that they run in."""
