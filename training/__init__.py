"""How the Toybox models were trained, and motion tuning for users. Run through ``python cli.py train``."""
