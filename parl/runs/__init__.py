"""Run folders: writing, reading, records, alarms."""
