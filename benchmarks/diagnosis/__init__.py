"""Whether the figures, the p-values and the verdicts of `deltamend diagnose` are right."""
