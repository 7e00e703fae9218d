"""Many fine-tuning runs as one study: models x methods x data sets x label fractions x seeds, from one YAML file."""
