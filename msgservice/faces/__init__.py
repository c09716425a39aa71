"""Other protocols' own terms, spoken over the same core."""
