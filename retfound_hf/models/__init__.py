"""Configuration, models, image processor and the conversion of official checkpoints."""
