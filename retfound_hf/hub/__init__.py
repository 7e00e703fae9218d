"""On the Hub: publishing with a truthful card, fetching the official weights, and files that load without us."""
