"""Labelled sets, patient-level splits, and synthetic sets on disk."""
