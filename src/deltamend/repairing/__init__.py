"""The main job: plan a repair, carry it out, write a checkpoint, an adapter or tensors in memory."""
