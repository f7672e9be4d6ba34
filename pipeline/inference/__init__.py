"""One study to array, score and decision."""
