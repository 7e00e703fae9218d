"""Maps of what a classifier looks at, pictures that an autoencoder paints, and the command that writes them."""
