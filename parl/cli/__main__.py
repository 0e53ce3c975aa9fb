"""`python -m parl.cli`: the command line without its script."""

from parl.cli.main import main

main()
