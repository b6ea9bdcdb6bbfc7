"""`python -m gm_discrete`, which is the command `gm-discrete`."""

from gm_discrete.command import main

main()
