"""Coverage-guided fuzzing of all that reads what strangers send: ``python -m tests.fuzz``."""
