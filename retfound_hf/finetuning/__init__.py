"""From a model folder and a labelled set to a classifier: full, LoRA and linear."""
