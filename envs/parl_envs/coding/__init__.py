"""Coding: an environment of small repositories to repair, and the sandbox that untrusted programs run in."""
