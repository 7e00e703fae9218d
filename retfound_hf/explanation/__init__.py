"""What a classifier looks at, and what an autoencoder paints: maps, pictures and the command that writes them."""
