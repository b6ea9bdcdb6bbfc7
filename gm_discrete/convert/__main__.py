from gm_discrete.convert.cli import main

main()
