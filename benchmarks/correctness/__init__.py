"""Whether what deltamend computes agrees with other programs and with plain float64."""
