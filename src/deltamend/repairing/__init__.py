"""Plan a repair, carry it out, and write the result as a checkpoint, as an adapter or into memory."""
