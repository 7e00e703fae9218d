"""Official `.pth` checkpoints to model folders: safe reading, explicit key tables, whole-or-nothing output."""
