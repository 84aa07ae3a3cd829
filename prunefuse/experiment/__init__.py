"""The active-learning loop, its records and ledger, the run folder and the report."""
