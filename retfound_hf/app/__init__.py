"""The web page: a fine-tuned folder in a browser, for one image or many, offline and on loopback."""
