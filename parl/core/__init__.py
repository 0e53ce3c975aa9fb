"""Values and small services that every other folder may use."""
