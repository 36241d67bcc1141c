"""The accept side of Postback, and what both sides agree on. Never imports ``workers``."""

__version__ = "0.1.0"
