"""Configuration, models, image processor, loading of any weights; registered with the Auto classes."""

from .backbones import register

register()
