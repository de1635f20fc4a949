"""Evaluation: what a model scores, item by item, through lm-evaluation-harness."""
