"""`python -m scdfm` is the command line."""

from scdfm.cli import main

main()
