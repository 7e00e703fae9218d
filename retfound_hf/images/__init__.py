"""Reading retinal images, finding the field of view, and synthetic retinas."""
