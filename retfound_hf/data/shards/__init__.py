"""Image shards: any number of retinal images, prepared once, as parquet that `datasets` reads."""
