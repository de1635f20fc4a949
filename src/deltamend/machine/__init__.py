"""What the program asks of the machine: files written whole or not at all, the cache folder, threads."""
