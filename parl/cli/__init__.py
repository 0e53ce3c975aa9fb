"""The command line: `parl`, with a file for each group of commands."""
