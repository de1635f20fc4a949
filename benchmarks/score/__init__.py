"""Whether the intervals of `deltamend score` hold the truth as often as they say."""
