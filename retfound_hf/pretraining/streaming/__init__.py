"""Training from shards as they are fetched, without a copy of all of them."""
