"""Several processes of one coordinator, on one database: who is where, and what goes from one to another."""
