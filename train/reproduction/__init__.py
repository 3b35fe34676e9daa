"""Reproduction of the project's first experiments: rows trained alike, their measures, and verdicts on the claims."""
