"""Coding: small repositories to repair, and the sandbox in which untrusted programs run."""
