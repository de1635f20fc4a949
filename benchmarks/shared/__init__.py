"""What scripts of several folders need: measuring a command, and a made-up checkpoint."""
