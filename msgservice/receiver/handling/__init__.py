"""Running the handlers of a receiver: order, turns, threads, transactions, outcomes."""
