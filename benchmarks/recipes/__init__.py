"""Whether training recipes forget less than plain training, on a toy that is made on the spot."""
