"""What is lost where a repair is killed, a disk is full or a file is damaged; whether a repair still writes the same bytes."""
