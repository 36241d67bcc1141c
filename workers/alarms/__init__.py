"""Alarms that know the sender: what is wrong, who is told, and what was said about it."""
