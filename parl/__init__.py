"""PARL: reinforcement learning for agents that work in parallel.

An orchestrator learns to split a task, to launch subagents at the same time and to join what they bring
back. The method is Parallel-Agent Reinforcement Learning, from "Kimi K2.5: Visual Agentic Intelligence"
(arXiv 2602.02276).

Importing this package is cheap: it loads no torch, ray or transformers.
"""

__version__ = "0.1.0"
