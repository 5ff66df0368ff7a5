"""``python -m launcher`` is ``uld-ds``."""

from launcher.cli import main

main()
