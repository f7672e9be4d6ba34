"""maescreen: from a folder of medical images to a certified screening threshold and a report."""

__version__ = "0.1.0"
