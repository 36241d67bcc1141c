"""The ledger: one record per notification, one per payment, and the only code that writes them."""
