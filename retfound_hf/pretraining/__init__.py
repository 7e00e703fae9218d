"""`pretrain`: self-supervised training on image shards, driven by Accelerate."""
