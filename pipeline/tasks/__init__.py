"""What a run learns and is judged by: labels of images, or structures in them."""
