"""Repair methods: one file a method, one registry. This room knows a delta and its context, not files."""
