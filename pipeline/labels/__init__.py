"""Tables that people write: labels, and whose picture is whose."""
