"""Policies: a renderer (messages <-> tokens) and a generation engine behind one protocol. torch only in an engine."""
