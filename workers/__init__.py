"""Everything behind the queue: the worker side, the ledger, the commands and the simulator."""
