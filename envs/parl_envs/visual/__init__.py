"""Images whose details cannot be read in the overview: tools to look closer, questions, scores."""
