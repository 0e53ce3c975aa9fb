"""WideSearch: fill a table of entities x attributes by searching a real corpus."""
