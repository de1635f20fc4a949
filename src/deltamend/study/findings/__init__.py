"""From the records of a study to what it found: figures with intervals, comparisons, sentences."""
