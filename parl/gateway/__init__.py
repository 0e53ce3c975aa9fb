"""Policies behind OpenAI's chat completions API: token in, token out, whatever the client keeps of the conversation."""
