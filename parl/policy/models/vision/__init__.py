"""Models that see: how each family reads an image, and passes over ids with images among them."""
