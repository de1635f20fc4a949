"""`python -m deltamend`."""

from deltamend.cli import main

main()
