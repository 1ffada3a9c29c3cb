"""A picture server under gunicorn: fractal map tiles and thumbnails, rendered once and shared by all workers."""
