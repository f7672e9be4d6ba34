"""A module that ends the process that imports it, but for the one that has set ALIVE."""

import os

if "ALIVE" not in os.environ:
    os._exit(23)


def task(item: object) -> object:
    return item
