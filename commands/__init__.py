"""What ``cli.py`` offers, one command a module: ``add_arguments(parser)`` and ``run(options)``."""
