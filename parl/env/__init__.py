"""Environments: the contract, tools, mixtures, plugins, tasks."""
