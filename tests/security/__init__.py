"""What holds of the whole project: the rules of its code, what it is deployed with, and a threat model with tests."""
